"""The slim decode step against the best attention that a user could pick, one layer, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.baselines import baselines
from benchmarks.gpu.clock import BUDGET, milliseconds
from tricks.shipped.modeling_slim import moved, to_bytes
from tricks.shipped.slim_kernel import Shape, decode, feed_back, mix, residual_codes
from tricks.shipped.slim_rounding import fed_back, feedback_size


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


def pieces() -> Iterator[dict[str, Any]]:
    """Microseconds of what a slim layer launches in a step, beside what a stock layer does in its place."""
    heads, size, rank = 32, 128, 256
    width, dtype = heads * size, torch.bfloat16
    shape = Shape(heads, size, rank, dtype, True)
    weight, rest = torch.randn(2, rank, 2 * width, device="cuda"), torch.randn(2, width, rank, device="cuda")
    weight, rest = weight.to(dtype), rest.to(dtype)
    whole = torch.randint(-32768, 32768, (width, width), device="cuda", dtype=torch.int16)
    scales = torch.rand(width, device="cuda").to(dtype)
    linear = torch.randn(width, width, device="cuda", dtype=dtype)
    order = torch.randperm(width, device="cuda").to(torch.int16)
    noise = (torch.randn(feedback_size(width), device="cuda") / 64).to(dtype)
    freq = 10000 ** (-torch.arange(0, size, 2, device="cuda").float() / size)
    for batch, context in ((1, 2048), (8, 4096), (32, 4096), (8, 16384)):
        if BUDGET.left() < 5:
            return
        q = torch.randn(batch, heads, size, device="cuda", dtype=dtype)
        x, primary = (torch.randn(batch, 1, width, device="cuda", dtype=dtype) for _ in range(2))
        wide = torch.randn(batch, 1, width, device="cuda")
        k = torch.randn(batch, context, width, device="cuda", dtype=dtype)
        c = torch.randn(batch, context, rank, device="cuda", dtype=dtype)
        codes = to_bytes(c)
        lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        sums = torch.randn(batch, heads, width + rank, device="cuda")

        def step(c: torch.Tensor, q: Any = q, k: Any = k, lengths: Any = lengths) -> torch.Tensor:
            return decode(q, k, c, lengths, freq, scale=size**-0.5)

        calls: dict[str, Callable[[], Any]] = {
            "feedback of rounding errors": lambda w=wide: feed_back(w, order, noise, None, shape),
            "the same in torch": lambda w=wide: fed_back(
                w, order.long(), noise, lambda piece: piece.to(dtype), moved
            ),
            "residual": lambda x=x, p=primary: residual_codes(x, p, weight, shape),
            "decode, residual in 8 bits": lambda step=step, c=codes: step(c),
            "decode, residual in 16 bits": lambda step=step, c=c: step(c),
            "product with [A; B]": lambda s=sums: mix(s, whole, scales, scales, rest, shape),
            "stock: value projection": lambda x=x: functional.linear(x, linear),
        }
        row = {name: milliseconds(call) * 1e3 for name, call in calls.items()}
        best = min(baselines(batch, heads, context, size).values()) * 1e3
        yield {"batch": batch, "context": context, **row, "stock: attention": best}
        shown = ", ".join(f"{name} {us:.1f}" for name, us in row.items())
        print(f"{batch} x {context}, us: {shown}, stock: attention {best:.1f}", flush=True)


def run(
    bandwidth: float, geometries: list[Geometry] | None = None, share: int = 16
) -> Iterator[dict[str, Any]]:
    """One row per geometry; `bandwidth` in bytes per second is what reading the cache once is measured by."""
    for at in geometries or GEOMETRIES:
        if BUDGET.left() < 8:
            return
        stock = baselines(at.batch, at.heads, at.context, at.size)
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
        yield row
        print(
            f"{at.name} {at.batch} x {at.context}: {best} {stock[best]:.3f} ms, slim {mine['kernel']:.3f}, "
            f"{row['speedup']:.2f}x, {row['of_reading_once']:.2f} of reading the slim cache once",
            flush=True,
        )
        torch.cuda.empty_cache()
