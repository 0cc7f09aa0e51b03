"""Which tiles FlashNorm's kernel should take: all candidates at every shape, on this machine's card.

    python -m benchmarks.gpu.flash_sweep [SHAPE]...       # SHAPE: WIDTHxCOLUMNS; all of flashnorm's without

Prints, for each shape and number of tokens, microseconds of stock, of the linear layer alone, of reading the
weight once, of the tiles in use and of the best candidates; at the end, for one, eight and sixteen tokens,
the candidates by their mean speed-up over stock, since `flash_kernel.tiles` has one choice for each. Writes
all of it to `flash_sweep.json` in $OUT, or beside the other results.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import copy_bandwidth, distance
from benchmarks.gpu.flashnorm import COMMON, SPEC, Case
from benchmarks.gpu.run import RESULTS
from tricks.shipped.flash_kernel import Tiles, launch

TOKENS = [1, 8, 16]
_PROCESSES = 12
_SEVERAL = [
    (64, 256, 4, 4), (64, 256, 4, 3), (64, 128, 4, 4), (64, 128, 4, 6), (64, 64, 4, 6),
    (32, 128, 2, 4), (32, 128, 2, 6), (32, 256, 2, 4), (32, 256, 4, 4), (32, 256, 4, 3),
    (16, 256, 2, 4), (16, 256, 1, 4), (16, 512, 2, 3), (128, 64, 4, 4), (128, 128, 4, 3),
]  # fmt: skip
_ONE = [
    (1, 4096, 2, 1), (2, 2048, 2, 1), (2, 4096, 4, 1), (4, 512, 2, 1), (4, 1024, 4, 1), (4, 2048, 4, 1),
    (4, 2048, 8, 1), (8, 512, 4, 1), (8, 1024, 4, 1), (8, 1024, 8, 1), (16, 512, 8, 1),
]  # fmt: skip


def candidates(tokens: int, width: int) -> list[Tiles]:
    """All tiles to try."""
    cuts = [Tiles(16, *one) for one in _SEVERAL]
    if tokens == 1:
        cuts += [Tiles(1, *one) for one in _ONE]
    wide = 1 << (width - 1).bit_length()
    return [cut for cut in cuts if cut.width <= wide]


def compile_all(widths: list[int]) -> None:
    """Have every candidate in Triton's cache on disk, compiled by several processes at once."""
    jobs = sorted(
        {(tokens, width, cut) for width in widths for tokens in TOKENS for cut in candidates(tokens, width)}
    )
    parts = [jobs[n::_PROCESSES] for n in range(_PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        pool.map(_compile, parts)


def _compile(jobs: list[tuple[int, int, Tiles]]) -> None:
    for tokens, width, cut in jobs:
        x, weight = (torch.ones(n, width, device="cuda", dtype=torch.bfloat16) for n in (tokens, 256))
        try:
            launch(x, weight, None, 1e-6, cut)
        except Exception:  # noqa: BLE001 - what a card has no room for is said where it is timed
            continue


def sweep(width: int, columns: int, tokens: int, bandwidth: float) -> dict[str, Any]:
    """One shape: microseconds by name, the candidates' sorted."""
    case = Case(width, columns, tokens)
    calls = {"stock": case.stock, "linear": case.linear, "current": case.ours}
    cuts: dict[str, Tiles] = {}
    refused = {}
    for cut in candidates(tokens, width):
        try:
            first = launch(case.x, case.weights[0], None, 1e-6, cut)
            off = distance(first, case.exact)
            same = all(
                torch.equal(first, launch(case.x, case.weights[0], None, 1e-6, cut)) for _ in range(20)
            )
        except Exception as error:  # noqa: BLE001 - no room on this card
            refused[name(cut)] = str(error).strip().splitlines()[-1][:80]
            continue
        if not (off < 2 * case.rounding and same):
            refused[name(cut)] = f"WRONG: error {off:.1e}, rounding {case.rounding:.1e}, same bits {same}"
            continue
        cuts[name(cut)] = cut
        calls[name(cut)] = lambda weight, cut=cut: launch(case.x, weight, None, 1e-6, cut)
    spans = dict(zip(calls, case.microseconds(list(calls.values())), strict=True))
    return {
        "width": width,
        "columns": columns,
        "tokens": tokens,
        "read_us": 2 * width * columns / bandwidth * 1e6,
        **{f"{key}_us": spans.pop(key) for key in ("stock", "linear", "current")},
        "candidates": dict(sorted(spans.items(), key=lambda item: item[1])),
        "refused": refused,
    }


def name(cut: Tiles) -> str:
    """Short for a table."""
    return f"{cut.rows}/{cut.columns}/{cut.width}/{cut.warps}/{cut.stages}"


def main(arguments: list[str]) -> int:
    """0; 2 and one line where there is no CUDA card or no shape."""
    try:
        shapes = [(int(a), int(b)) for a, b in (text.split("x") for text in arguments)] or COMMON + SPEC
    except ValueError:
        sys.stderr.write("a shape is WIDTHxCOLUMNS, for example 4096x12288\n")
        return 2
    if not torch.cuda.is_available():
        sys.stderr.write("flash_sweep needs a CUDA card, and this machine has none that torch can use\n")
        return 2
    begin = time.perf_counter()
    compile_all(sorted({width for width, _ in shapes}))
    print(
        f"compiled in {time.perf_counter() - begin:.0f} s; rows/columns/width/warps/stages",
        flush=True,
    )
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, {bandwidth / 1e12:.2f} TB/s", flush=True)
    rows = []
    out = Path(os.environ.get("OUT", RESULTS.parent)) / "flash_sweep.json"
    for tokens in TOKENS:
        for width, columns in shapes:
            row = sweep(width, columns, tokens, bandwidth)
            rows.append(row)
            best = ", ".join(f"{key} {us:.1f}" for key, us in list(row["candidates"].items())[:6])
            print(
                f"{width}->{columns} t{tokens}: read {row['read_us']:.1f} stock {row['stock_us']:.1f} linear "
                f"{row['linear_us']:.1f} now {row['current_us']:.1f} | {best}",
                flush=True,
            )
            for key, why in row["refused"].items():
                if why.startswith("WRONG"):
                    print(f"    {key}: {why}", flush=True)
            out.write_text(json.dumps(rows, indent=1) + "\n")
            torch.cuda.empty_cache()
    summary(rows)
    print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    return 0


def summary(rows: list[dict[str, Any]]) -> None:
    """For each number of tokens the candidates by mean speed-up, beside the best of each shape."""
    for tokens in TOKENS:
        here = [row for row in rows if row["tokens"] == tokens and row["candidates"]]
        if not here:
            continue
        common = set.intersection(*(set(row["candidates"]) for row in here))

        def gains(key: str, here: list[dict[str, Any]] = here) -> list[float]:
            return [row["stock_us"] / row["candidates"][key] for row in here]

        best = [row["stock_us"] / min(row["candidates"].values()) for row in here]
        now = [row["stock_us"] / row["current_us"] for row in here]
        alone = [row["stock_us"] / row["linear_us"] for row in here]
        print(f"t{tokens}: linear alone {_said(alone)}\n    best of each {_said(best)}\n    now {_said(now)}")
        for key in sorted(common, key=lambda key: -statistics.geometric_mean(gains(key)))[:6]:
            print(f"    {key} {_said(gains(key))}", flush=True)


def _said(gains: list[float]) -> str:
    return f"{statistics.geometric_mean(gains):.3f}: " + " ".join(f"{gain:.2f}" for gain in gains)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
