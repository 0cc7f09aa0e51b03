"""Norm and linear layer: FlashNorm's kernel against `F.rms_norm` + cuBLAS, both in CUDA graphs.

Each graph walks through enough copies of the weight that none is found in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.clock import BUDGET, distance, side_by_side
from tricks.shipped.flash_kernel import norm_linear

SPEC = [(576, 960), (2048, 2560), (4096, 6144)]
COMMON = [(4096, 12288), (4096, 22016), (3072, 9216), (8192, 10240)]
TOKENS = [1, 16, 64, 256, 1024, 4096]


def shape(width: int, columns: int, tokens: int) -> dict[str, Any]:
    """Microseconds of stock norm + linear, of the linear alone and of ours, and our error against float64."""
    copies = max(1, min(128, (256 << 20) // (2 * width * columns)))
    weights = [torch.randn(columns, width, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(copies)]
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    gain = torch.randn(width, device="cuda", dtype=torch.bfloat16)

    def stock(weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.rms_norm(x, (width,), gain, 1e-6), weight)

    def ours(weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fused = norm_linear(x, weight, None, 1e-6)
        if fused is not None:
            return fused
        return functional.linear(functional.rms_norm(x, (width,), None, 1e-6), weight)

    def through(call: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        return lambda: [call(weight) for weight in weights]

    spans = side_by_side([through(call) for call in (stock, lambda w: functional.linear(x, w), ours)])
    times = dict(
        zip(("stock_us", "linear_us", "flashnorm_us"), (s / copies * 1e3 for s in spans), strict=True)
    )
    exact = functional.rms_norm(x.double(), (width,), eps=1e-6) @ weights[0].double().T
    first = ours(weights[0])
    return {
        "width": width,
        "columns": columns,
        "tokens": tokens,
        **times,
        "speedup": times["stock_us"] / times["flashnorm_us"],
        "of_linear_alone": times["flashnorm_us"] / times["linear_us"],
        "error": distance(first, exact),
        "rounding": distance(exact.to(first.dtype), exact),
        "same_bits": all(torch.equal(first, ours(weights[0])) for _ in range(200)),
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
