"""Decode latency before and after the other tricks, at real geometries with random weights."""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.gpu.generate import measure
from benchmarks.gpu.geometry import LLAMA_7B, PHI3_MINI, converted, source

CASES: list[tuple[str, tuple[str, dict[str, Any]], tuple[str, ...]]] = [
    ("Llama-2-7B", LLAMA_7B, ("flashnorm:form=strict",)),
    ("Llama-2-7B", LLAMA_7B, ("flashnorm:form=defer",)),
    ("Llama-2-7B", LLAMA_7B, ("precompute",)),
    ("Llama-2-7B", LLAMA_7B, ("matshrink",)),
    ("Phi-3-mini-128k", PHI3_MINI, ("flashnorm:form=defer",)),
]


def run() -> list[dict[str, Any]]:
    """A step at batch 1 and 16 on a context of 2048, source and converted in one run."""
    rows = []
    before: dict[str, dict[int, float]] = {}
    for name, (kind, fields), tricks in CASES:
        if name not in before:
            model = source(kind, fields)
            before[name] = {batch: measure(model, batch, 2048)["step_ms"] for batch in (1, 16)}
            del model
        try:
            model, _ = converted(kind, fields, *tricks)
            for batch in (1, 16):
                after = measure(model, batch, 2048)["step_ms"]
                row = {
                    "model": name,
                    "tricks": list(tricks),
                    "batch": batch,
                    "context": 2048,
                    "before_ms": before[name][batch],
                    "after_ms": after,
                    "speedup": before[name][batch] / after,
                }
                rows.append(row)
                print(
                    f"{name} {'+'.join(tricks)} batch {batch}: {row['before_ms']:.2f} -> {after:.2f} ms",
                    flush=True,
                )
            del model
        except Exception as error:  # noqa: BLE001 - a trick that does not fit is a row too
            rows.append({"model": name, "tricks": list(tricks), "refused": str(error).splitlines()[0][:200]})
            print(f"{name} {'+'.join(tricks)}: {rows[-1]['refused']}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return rows
