"""The slim kernel against a float64 reference: shapes, dtypes, features, bad numbers, the same bits twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.clock import distance
from tricks.shipped.modeling_slim import from_bytes, moved, to_bytes
from tricks.shipped.slim_kernel import Shape, available, decode, feed_back, mix, plain, residual_codes
from tricks.shipped.slim_rounding import fed_back, feedback_size


@dataclass(frozen=True)
class Case:
    """One call: `large` scales the query, `page` is slots per page (0: contiguous)."""

    heads: int
    size: int
    residual: int
    batch: int
    slots: int
    dtype: torch.dtype = torch.bfloat16
    rotary: bool = True
    even: bool = False
    starts: bool = False
    window: int = 0
    slopes: bool = False
    cap: float = 0.0
    page: int = 0
    large: bool = False
    turned: bool = False
    codes: bool = False


_HALF = torch.float16
CASES = [
    Case(32, 128, 256, 1, 16, even=True, rotary=False),
    Case(32, 128, 256, 1, 1, even=True),
    Case(32, 128, 256, 1, 500, even=True, rotary=False),
    Case(32, 128, 256, 3, 3000),
    Case(32, 128, 256, 3, 3000, turned=True),
    Case(32, 128, 256, 3, 3000, large=True),
    Case(32, 128, 256, 3, 3000, dtype=_HALF),
    Case(32, 128, 256, 40, 1100),
    Case(32, 128, 256, 3, 3000, codes=True),
    Case(32, 128, 240, 3, 3000, codes=True, dtype=_HALF),
    Case(32, 96, 192, 4, 2000, codes=True),
    Case(40, 128, 320, 3, 2000, codes=True),
    Case(12, 64, 48, 5, 1504, codes=True, rotary=False, page=16),
    Case(32, 96, 192, 4, 2000),
    Case(32, 96, 192, 4, 2000, dtype=_HALF, turned=True),
    Case(32, 64, 128, 4, 2000),
    Case(32, 64, 128, 4, 2000, dtype=_HALF),
    Case(32, 80, 160, 4, 2000),
    Case(32, 80, 160, 4, 2000, dtype=_HALF),
    Case(16, 256, 256, 4, 2000),
    Case(16, 256, 256, 4, 2000, dtype=_HALF),
    Case(40, 128, 320, 3, 2000),
    Case(12, 64, 48, 5, 1500, rotary=False),
    Case(20, 64, 80, 5, 1500, rotary=False),
    Case(6, 64, 24, 5, 1500),
    Case(32, 128, 0, 3, 1000),
    Case(32, 128, 16, 3, 1000),
    Case(32, 128, 512, 3, 1000),
    Case(32, 128, 1024, 3, 1000),
    Case(32, 128, 256, 5, 4000, starts=True),
    Case(32, 128, 256, 5, 4000, window=777),
    Case(32, 128, 256, 5, 4000, window=777, starts=True),
    Case(32, 128, 256, 5, 4000, slopes=True, rotary=False),
    Case(32, 128, 256, 5, 4000, cap=20.0, large=True),
    Case(32, 128, 256, 5, 4096, page=16),
    Case(32, 128, 256, 5, 4096, page=256),
    Case(32, 128, 256, 2, 131072, even=True),
]


def check(case: Case) -> dict[str, Any]:
    """Error and noise of one case.

    Slots behind a row's length hold NaN and must not count. `ok` says that the error is at the level of the
    dtype's own rounding and that two calls give the same bits.
    """
    torch.manual_seed(case.slots + case.heads)
    given: dict[str, Any] = {"scale": case.size**-0.5, "window": case.window, "cap": case.cap}
    batch, slots, device = case.batch, case.slots, "cuda"
    k = torch.randn(batch, slots, case.heads * case.size, device=device, dtype=case.dtype)
    c = torch.randn(batch, slots, case.residual, device=device, dtype=case.dtype) if case.residual else None
    q = torch.randn(batch, case.heads, case.size, device=device, dtype=case.dtype) * (4 if case.large else 1)
    lengths = torch.randint(max(1, slots // 3), slots + 1, (batch,), device=device, dtype=torch.int32)
    if case.even:
        lengths.fill_(slots)
    freq = 10000 ** (-torch.arange(0, case.size, 2, device=device).float() / case.size)
    if case.starts:
        given["starts"] = (torch.rand(batch, device=device) * lengths * 0.9).int()
    if case.slopes:
        given["slopes"] = 2 ** (-8 * (torch.arange(case.heads, device=device) + 1) / case.heads)
    if case.turned:
        angle = torch.rand(batch, case.size // 2, device=device) * 6
        given["turn"] = torch.cat([angle.cos(), angle.sin()], -1)
    if case.codes:
        c = to_bytes(c)
    for x in (k, c):
        for row in range(batch if x is not None else 0):
            x[row, lengths[row] :] = -1 if x.dtype == torch.int8 else torch.nan  # -1: the scale is NaN
    values = c if c is None or not case.codes else from_bytes(c, case.dtype)
    finite = [None if x is None else torch.nan_to_num(x.double()) for x in (k, values)]
    turns = freq if case.rotary else None
    reference = plain(q.double(), *finite, lengths, turns, **given)
    if case.page:
        k, c, given["table"] = paged(k, c, case.page)
    first = decode(q, k, c, lengths, turns, **given)
    same = torch.equal(first, decode(q, k, c, lengths, turns, **given))
    error, noise = distance(first, reference), distance(reference.to(case.dtype), reference)
    return {
        **{name: str(value) if name == "dtype" else value for name, value in asdict(case).items()},
        "kernel": available(
            Shape(case.heads, case.size, case.residual, case.dtype, case.rotary),
            torch.device("cuda", 0),
        ),
        "error": error,
        "rounding": noise,
        "same_bits": same,
        "ok": error < 4.5 * noise + 1e-4 and same,
    }


def paged(
    k: torch.Tensor, c: torch.Tensor | None, page: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The same cache in pages of `page` slots, in random order, and the table that finds them."""
    batch, slots = k.shape[:2]
    order = torch.randperm(batch * slots // page, device=k.device)

    def spread(x: torch.Tensor) -> torch.Tensor:
        pages = torch.empty_like(x.view(-1, page, x.shape[-1]))
        pages[order] = x.view(-1, page, x.shape[-1])
        return pages

    return spread(k), None if c is None else spread(c), order.view(batch, -1).int()


def mixed(heads: int = 32, size: int = 128, rank: int = 256, batch: int = 5) -> dict[str, Any]:
    """The heads' own matrices, stored as 16-bit integers, against float64."""
    wide, dtype = heads * size, torch.bfloat16
    shape = Shape(heads, size, rank, dtype, True)
    sums = torch.randn(batch, heads, wide + rank, device="cuda")
    whole = torch.randint(-32768, 32768, (wide, wide), device="cuda", dtype=torch.int16)
    rows, columns = (torch.rand(wide, device="cuda").to(dtype) / 64 for _ in range(2))
    rest = torch.randn(2, wide, rank, device="cuda", dtype=dtype) / 1e4
    out = mix(sums, whole, rows, columns, rest, shape)
    assert out is not None
    matrix = torch.cat([whole.double() * rows.double()[:, None] * columns.double(), rest.double().sum(0)], 1)
    exact = torch.einsum("bhe,hve->bhv", sums.double(), matrix.view(heads, size, -1)).flatten(1)
    error, noise = distance(out, exact), distance(exact.to(dtype), exact)
    same = torch.equal(out, mix(sums, whole, rows, columns, rest, shape))  # type: ignore[arg-type]
    return {"batch": batch, "error": error, "rounding": noise, "ok": error < 1.01 * noise and same}


def coded(dtype: torch.dtype, batch: int) -> dict[str, Any]:
    """New tokens' residuals in 8 bits, against those that torch makes of float64 sums."""
    heads, size, rank = 32, 128, 256
    wide = heads * size
    x, primary = (torch.randn(batch, 1, wide, device="cuda", dtype=dtype) for _ in range(2))
    weight = torch.randn(2, rank, 2 * wide, device="cuda", dtype=dtype) / 64
    weight[1] /= 256
    shape = Shape(heads, size, rank, dtype, True)
    out = residual_codes(x, primary, weight, shape)
    assert out is not None
    exact = torch.cat([x, primary], -1).double() @ weight.double().sum(0).T
    alike = float((out == to_bytes(exact.float())).double().mean())
    same = torch.equal(out, residual_codes(x, primary, weight, shape))  # type: ignore[arg-type]
    return {"dtype": str(dtype), "batch": batch, "same_bytes": alike, "ok": alike > 0.99 and same}


def shaped(dtype: torch.dtype, batch: int, width: int = 4096) -> dict[str, Any]:
    """New tokens rounded with error feedback: where the kernels' numbers are not torch's, and how far off."""
    values = torch.randn(batch, 1, width, device="cuda")
    order = torch.randperm(width, device="cuda").to(torch.int16)
    weights = (torch.randn(feedback_size(width), device="cuda") / 64).to(dtype)
    shape = Shape(32, width // 32, 256, dtype, True)
    out = feed_back(values.clone(), order, weights, None, shape)
    assert out is not None
    same = torch.equal(out, feed_back(values.clone(), order, weights, None, shape))  # type: ignore[arg-type]
    expected = fed_back(values, order.long(), weights, lambda piece: piece.to(dtype), moved)
    alike = float((out == expected).double().mean())
    off = distance(out, expected) / distance(values.to(dtype), values)
    return {"dtype": str(dtype), "batch": batch, "alike": alike, "off": off, "ok": alike > 0.95 and same}


def bad_numbers() -> dict[str, bool]:
    """A NaN or an infinite key in one row of the batch reaches that row's output and no other's."""
    out = {}
    for name, value in (("nan", torch.nan), ("inf", torch.inf)):
        torch.manual_seed(0)
        k = torch.randn(3, 1000, 4096, device="cuda", dtype=torch.bfloat16)
        c = torch.randn(3, 1000, 256, device="cuda", dtype=torch.bfloat16)
        q = torch.randn(3, 32, 128, device="cuda", dtype=torch.bfloat16)
        lengths = torch.full((3,), 1000, device="cuda", dtype=torch.int32)
        clean = decode(q, k, c, lengths, None, scale=0.1)
        k[1, 500, 7] = value
        hurt = decode(q, k, c, lengths, None, scale=0.1)
        out[name] = bool(torch.equal(clean[[0, 2]], hurt[[0, 2]]) and not hurt[1, 0].isfinite().all())
    return out


def run() -> dict[str, Any]:
    """Every case, one line each."""
    cases = []
    for case in CASES:
        cases.append(row := check(case))
        shown = " ".join(f"{k}={v}" for k, v in row.items() if v not in (0, False) and k not in ("ok",))
        print("ok " if row["ok"] else "BAD", shown, flush=True)
    bad = bad_numbers()
    print("bad numbers stay in their row:", bad, flush=True)
    products = [mixed(batch=batch) for batch in (1, 5, 70)]
    residuals = [coded(dtype, batch) for dtype in (torch.bfloat16, _HALF) for batch in (1, 40)]
    fed = [shaped(dtype, batch) for dtype in (torch.bfloat16, _HALF) for batch in (1, 7)]
    fed.append(shaped(torch.bfloat16, 32, 3072))
    for row in products + residuals + fed:
        print("ok " if row["ok"] else "BAD", row, flush=True)
    fine = all(row["ok"] for row in cases + products + residuals + fed) and all(bad.values())
    return {
        "cases": cases,
        "bad_numbers": bad,
        "products": products,
        "residuals": residuals,
        "feedback": fed,
        "ok": fine,
    }
