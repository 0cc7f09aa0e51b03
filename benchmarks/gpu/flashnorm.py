"""Norm and linear layer: FlashNorm's kernel against `F.rms_norm` + cuBLAS, both in CUDA graphs.

Each graph walks through enough copies of the weight that none is found in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.clock import BUDGET, distance, side_by_side
from benchmarks.gpu.geometry import DEVICE
from tricks.shipped.flash_kernel import norm_linear

SPEC = [(576, 960), (2048, 2560), (4096, 6144)]
COMMON = [(4096, 12288), (4096, 22016), (3072, 9216), (8192, 10240)]
TOKENS = [1, 16, 64, 256, 1024, 4096]


class Case:
    """One product: x [tokens, width], enough weights [columns, width], and the result in float64."""

    def __init__(self, width: int, columns: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.width = width
        given: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
        # At least four, so that what launching a graph takes counts little.
        copies = max(4, min(128, (256 << 20) // (2 * width * columns)))
        self.weights = [torch.randn(columns, width, **given) / 64 for _ in range(copies)]
        self.x = torch.randn(tokens, width, **given)
        self.gain = torch.randn(width, **given)
        wide = functional.rms_norm(self.x.double(), (width,), eps=1e-6)
        self.exact = wide @ self.weights[0].double().T
        self.rounding = distance(self.exact.to(dtype), self.exact)

    def stock(self, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.rms_norm(self.x, (self.width,), self.gain, 1e-6), weight)

    def linear(self, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.x, weight)

    def ours(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fused = norm_linear(self.x, weight, None, 1e-6)
        if fused is not None:
            return fused
        return functional.linear(functional.rms_norm(self.x, (self.width,), None, 1e-6), weight)

    def microseconds(self, calls: list[Callable[[torch.Tensor], Any]]) -> list[float]:
        """Of one call of each, graphs of all weights replayed in turns."""

        def through(call: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
            return lambda: [call(weight) for weight in self.weights]

        return [ms / len(self.weights) * 1e3 for ms in side_by_side([through(call) for call in calls])]


def shape(width: int, columns: int, tokens: int) -> dict[str, Any]:
    """Microseconds of stock norm + linear, of the linear alone and of ours, and our error against float64."""
    case = Case(width, columns, tokens)
    spans = case.microseconds([case.stock, case.linear, case.ours])
    times = dict(zip(("stock_us", "linear_us", "flashnorm_us"), spans, strict=True))
    first = case.ours(case.weights[0])
    return {
        "width": width,
        "columns": columns,
        "tokens": tokens,
        **times,
        "speedup": times["stock_us"] / times["flashnorm_us"],
        "of_linear_alone": times["flashnorm_us"] / times["linear_us"],
        "error": distance(first, case.exact),
        "rounding": case.rounding,
        "same_bits": all(torch.equal(first, case.ours(case.weights[0])) for _ in range(200)),
    }


def run() -> Iterator[dict[str, Any]]:
    """The spec's eighteen shapes, then common ones."""
    for width, columns in SPEC + COMMON:
        for tokens in TOKENS:
            if BUDGET.left() < 3:
                return
            row = shape(width, columns, tokens)
            yield row
            print(
                f"{width} -> {columns}, {tokens} tokens: stock {row['stock_us']:.1f} us, linear alone "
                f"{row['linear_us']:.1f}, FlashNorm {row['flashnorm_us']:.1f}: {row['speedup']:.2f}x, "
                f"{row['of_linear_alone']:.2f} of the linear alone, error {row['error']:.1e}"
                f"{'' if row['same_bits'] else ', NOT DETERMINISTIC'}",
                flush=True,
            )
