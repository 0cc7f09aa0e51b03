"""The slim decode step against the best attention that a user could pick, one layer, in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.gpu.clock import milliseconds
from tricks.shipped.slim_kernel import decode

_SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Geometry:
    """One layer of a model without grouped keys, at a batch and a context."""

    name: str
    heads: int
    size: int
    batch: int
    context: int

    @property
    def width(self) -> int:
        return self.heads * self.size


GEOMETRIES = [
    Geometry("Llama-2-7B", 32, 128, 1, 131072),
    Geometry("Llama-2-7B", 32, 128, 8, 16384),
    Geometry("Llama-2-7B", 32, 128, 64, 8192),
    Geometry("Phi-3-mini", 32, 96, 1, 131072),
    Geometry("Phi-3-mini", 32, 96, 8, 16384),
    Geometry("Phi-3-mini", 32, 96, 64, 8192),
    Geometry("SmolLM2-1.7B", 32, 64, 8, 16384),
    Geometry("Llama-2-13B", 40, 128, 8, 16384),
]


def baselines(at: Geometry) -> dict[str, float]:
    """Milliseconds of every attention that this machine has, on K and V as transformers caches them."""
    shape = (at.batch, at.heads, at.context, at.size)
    q = torch.randn(at.batch, at.heads, 1, at.size, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def stock(backend: SDPBackend) -> Callable[[], Any]:
        def call() -> Any:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, v)

        return call

    calls: dict[str, Callable[[], Any]] = {name: stock(backend) for name, backend in _SDPA.items()}
    flex = torch.compile(flex_attention, dynamic=False)
    calls["flex attention"] = lambda: flex(q, k, v)
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_with_kvcache

        rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        calls["flash_attn"] = lambda: flash_attn_with_kvcache(*rows)
    if importlib.util.find_spec("flashinfer") and at.batch == 1:
        import flashinfer

        calls["flashinfer"] = lambda: flashinfer.single_decode_with_kv_cache(
            q[0, :, 0], k[0], v[0], kv_layout="HND", use_tensor_cores=True
        )
    took = {}
    for name, call in calls.items():
        try:
            took[name] = milliseconds(call)
        except Exception as error:  # noqa: BLE001 - what a library refuses is no baseline
            print(f"  {name}: {str(error).splitlines()[0][:90]}", flush=True)
    return took


def slim(at: Geometry, share: int) -> dict[str, float]:
    """Milliseconds of the slim step with a residual of d/share, with and without its product with [A; B]."""
    rank = at.width // share
    q = torch.randn(at.batch, at.heads, at.size, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(at.batch, at.context, at.width, device="cuda", dtype=torch.bfloat16)
    c = torch.randn(at.batch, at.context, rank, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((at.batch,), at.context, dtype=torch.int32, device="cuda")
    freq = 10000 ** (-torch.arange(0, at.size, 2, device="cuda").float() / at.size)

    def step() -> torch.Tensor:
        return decode(q, k, c, lengths, freq, scale=at.size**-0.5)

    return {"kernel": milliseconds(step), "bytes": k.nbytes + c.nbytes}


def run(bandwidth: float, geometries: list[Geometry] | None = None, share: int = 16) -> list[dict[str, Any]]:
    """One row per geometry; `bandwidth` in bytes per second is what reading the cache once is measured by."""
    rows = []
    for at in geometries or GEOMETRIES:
        stock = baselines(at)
        best = min(stock, key=stock.__getitem__)
        mine = slim(at, share)
        once = mine["bytes"] / bandwidth * 1e3
        row = {
            "model": at.name,
            "batch": at.batch,
            "context": at.context,
            "residual": at.width // share,
            "stock_ms": stock,
            "best": best,
            "slim_ms": mine["kernel"],
            "read_once_ms": once,
            "speedup": stock[best] / mine["kernel"],
            "of_reading_once": mine["kernel"] / once,
        }
        rows.append(row)
        print(
            f"{at.name} {at.batch} x {at.context}: {best} {stock[best]:.3f} ms, slim {mine['kernel']:.3f}, "
            f"{row['speedup']:.2f}x, {row['of_reading_once']:.2f} of reading the slim cache once",
            flush=True,
        )
        torch.cuda.empty_cache()
    return rows
