"""What verification costs in forward passes over the text, by length: `python -m benchmarks.passes`.

Honest FlashNorm conversions. Where a limit is not kept at first, what it comes from is measured again over
the whole text, one pass a step. From 4,096 tokens on, no more than 2.2 passes are the aim.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.zoo import make
from evals import Evidence, compare
from evals.compare import AGAIN_NOTE
from tricks import convert, make_plan, parse_trick, read_checkpoint

TRAINED = Path(__file__).parent.parent / "models" / "tiny-llama"
LENGTHS = (256, 1024, 4096, 16384)


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tricksmith-") as scratch:
        sources = {"tiny-llama (trained)": TRAINED}
        for seed in range(3):
            for name in ("qwen2", "qwen3_moe"):
                sources[f"{name}, seed {seed}"] = make(
                    Path(scratch) / f"{name}-{seed}", name, torch.bfloat16, seed
                )
        print("| source | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |")
        print("|---|" + "---:|" * len(LENGTHS))
        for label, source in sources.items():
            out = Path(scratch) / f"{source.name}-converted"
            plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
            convert(plan, source, out)
            row = [compare(source, out, tokens=length, plan=plan, tricks=["flashnorm"]) for length in LENGTHS]
            print(f"| {label} | " + " | ".join(map(_cell, row)) + " |", flush=True)


def _cell(evidence: Evidence) -> str:
    again = " (again)" if AGAIN_NOTE in evidence.notes else ""
    return f"{evidence.settings['passes']:.2f}{again}"


if __name__ == "__main__":
    main()
