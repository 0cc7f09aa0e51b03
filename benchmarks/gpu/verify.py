"""Verification's pass over a text on the card: windows one at a time and as many as memory takes.

A pass is what `evals` runs again and again: a model's logits at every position, held against the reference's
(divergences, best tokens, losses; in float64).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.clock import BUDGET
from benchmarks.gpu.geometry import DEVICE, source
from evals.logits import LogitComparison
from evals.memory import MemoryLimit
from evals.models import Kind, Loaded
from evals.passes import Meter, exact_matmul, rows_that_fit, window_logits
from evals.reference import Piece, run_pieces
from evals.windows import Window
from tricks import silent

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
WINDOW = 512
WINDOWS = 128


def run(
    fields: dict[str, Any] = LLAMA_1B, window: int = WINDOW, count: int = WINDOWS
) -> Iterator[dict[str, Any]]:
    """Tokens per second in bfloat16 and float32, the dtypes of a bfloat16 checkpoint's comparison."""
    ids = torch.randint(
        5, fields["vocab_size"], (count, window + 1), generator=torch.Generator().manual_seed(0)
    )
    windows = [Window(row[:-1], row[1:]) for row in ids]
    for dtype in (torch.bfloat16, torch.float32):
        if BUDGET.left() < 20:
            return
        model = source("llama", fields).to(dtype)
        found = Loaded(model, Kind.CAUSAL, torch.device(DEVICE), (), False)
        with exact_matmul(), torch.inference_mode():
            many = rows_that_fit(found, windows, MemoryLimit(), 8)
            runs = window_logits(found, windows, Meter(silent, 1, many))
            pieces = [Piece(one, moved(logits)) for one, logits in zip(windows, runs, strict=True)]
            few = pieces[: max(1, count // 8)]
            expected = passed(found, pieces, many)[1]
            for batch, some in ((1, few), (8, pieces), (many, pieces)):
                seconds, losses = passed(found, some, batch)
                row = {
                    "dtype": str(dtype).removeprefix("torch."),
                    "batch": batch,
                    "tokens": len(some) * window,
                    "seconds": seconds,
                    "tokens_per_second": len(some) * window / seconds,
                    "largest_loss_difference": float((losses - expected[: len(losses)]).abs().max()),
                }
                yield said(row)
            yield said(on_the_cpu(found, few[:2], row))
        del model, found
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def passed(found: Loaded, pieces: list[Piece], batch: int) -> tuple[float, torch.Tensor]:
    """Seconds of a pass, and what each token cost."""
    begin = time.perf_counter()
    _, losses = run_pieces(found, pieces, Meter(silent, 1, batch), "kept", "again")
    return time.perf_counter() - begin, losses


def moved(logits: torch.Tensor) -> torch.Tensor:
    """Kept on the CPU, and not quite the same: what is equal bit for bit is not compared further."""
    return logits.cpu() + (0.01 * torch.randn(logits.shape[1])).to(logits.dtype)


def on_the_cpu(found: Loaded, pieces: list[Piece], like: dict[str, Any]) -> dict[str, Any]:
    """What comparing alone takes where logits are carried to the CPU for it."""
    logits = list(window_logits(found, [piece.window for piece in pieces], Meter(silent, 1, len(pieces))))
    begin = time.perf_counter()
    comparison = LogitComparison("kept", "again")
    for piece, row in zip(pieces, logits, strict=True):
        assert piece.logits is not None
        comparison.add(piece.logits, row.cpu())
    seconds, tokens = time.perf_counter() - begin, sum(len(piece.window.inputs) for piece in pieces)
    same = {"dtype": like["dtype"], "compared_on": "cpu", "tokens": tokens, "seconds": seconds}
    return {**same, "tokens_per_second": tokens / seconds}


def said(row: dict[str, Any]) -> dict[str, Any]:
    """The row, shown."""
    what = f"{row['batch']} windows at once" if "batch" in row else "comparing alone, on the CPU"
    print(f"verify, {row['dtype']}, {what}: {row['tokens_per_second']:.0f} tokens/s", flush=True)
    return row
