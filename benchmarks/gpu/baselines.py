"""Decode attention as a user could pick it, on K and V as transformers caches them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.gpu.clock import BUDGET, milliseconds
from benchmarks.gpu.geometry import DEVICE

_SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Flex:
    """FlexAttention, compiled once for each shape of head and for one row or several; any context.

    A compilation takes seconds, and nothing can stop one: none is begun where one that takes as long as the
    last did would go beyond `seconds` of compiling in all, or beyond half of what is left of the run's time.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._last = 10.0
        self._ready: set[tuple[int, int, bool]] = set()
        self._compiled = torch.compile(flex_attention, dynamic=True)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], Any] | None:
        """A call on q [B, H, 1, D], k and v [B, H, T, D]; None where there is no time to compile it."""
        key = q.shape[1], q.shape[-1], len(q) > 1
        if key not in self._ready:
            if self._last > min(self.left, BUDGET.left() / 2):
                return None
            begin = time.monotonic()
            try:
                self._compiled(q, k, v)
            finally:
                self._last = time.monotonic() - begin
                self.left -= self._last
            print(f"  flex attention compiled in {self._last:.1f} s", flush=True)
            self._ready.add(key)
        return lambda: self._compiled(q, k, v)


FLEX = Flex(30)


def baselines(batch: int, heads: int, context: int, size: int) -> dict[str, float]:
    """Milliseconds of one decoding step, by name, of every attention that this machine has."""
    given = {"device": DEVICE, "dtype": torch.bfloat16}
    q = torch.randn(batch, heads, 1, size, **given)  # type: ignore[arg-type]
    k, v = (torch.randn(batch, heads, context, size, **given) for _ in range(2))  # type: ignore[arg-type]

    def stock(backend: SDPBackend) -> Callable[[], Any]:
        def call() -> Any:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, v)

        return call

    makers: dict[str, Callable[[], Callable[[], Any] | None]] = {
        name: lambda backend=backend: stock(backend)  # type: ignore[misc]
        for name, backend in _SDPA.items()
    }
    makers["flex attention"] = lambda: FLEX(q, k, v)
    if importlib.util.find_spec("flash_attn"):
        makers["flash_attn"] = lambda: _flash_attn(q, k, v)
    if importlib.util.find_spec("flashinfer") and batch == 1:
        makers["flashinfer"] = lambda: _flashinfer(q, k, v)
    took = {}
    for name, make in makers.items():
        try:
            call = make()
            if call is not None:
                took[name] = milliseconds(call)
        except Exception as error:  # noqa: BLE001 - what a library refuses is no baseline
            print(
                f"  {name}: {(str(error).strip() or type(error).__name__).splitlines()[0][:90]}", flush=True
            )
    return took


def _flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], Any]:
    from flash_attn import flash_attn_with_kvcache

    rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return lambda: flash_attn_with_kvcache(*rows)


def _flashinfer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], Any]:
    import flashinfer

    return lambda: flashinfer.single_decode_with_kv_cache(
        q[0, :, 0], k[0], v[0], kv_layout="HND", use_tensor_cores=True
    )
