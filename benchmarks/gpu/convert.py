"""Conversion beside a card: bytes per second of FlashNorm, against a copy of the same files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.geometry import source
from tricks import convert, make_plan, parse_trick, read_checkpoint

FIELDS = {
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


def run() -> list[dict[str, Any]]:
    """A random Llama of 4 layers at SmolLM2-1.7B's width."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "source"
        source("llama", FIELDS).cpu().save_pretrained(stored)
        size = sum(file.stat().st_size for file in stored.iterdir())
        begin = time.perf_counter()
        shutil.copytree(stored, Path(folder) / "copy")
        copied = time.perf_counter() - begin
        begin = time.perf_counter()
        hashlib.sha256(bytes(1 << 28))
        hashed = (1 << 28) / (time.perf_counter() - begin)
        for trick in ("flashnorm",):
            begin = time.perf_counter()
            plan = make_plan(read_checkpoint(stored), [parse_trick(trick)])
            planned = time.perf_counter()
            convert(plan, stored, Path(folder) / "out")
            took = time.perf_counter() - planned
            row = {
                "trick": trick,
                "bytes": size,
                "plan_seconds": planned - begin,
                "seconds": took,
                "bytes_per_second": size / took,
                "copy_bytes_per_second": size / copied,
                "sha256_bytes_per_second": hashed,
                "processors": os.cpu_count(),
            }
            rows.append(row)
            print(
                f"{trick}: {size / took / 1e9:.2f} GB/s, copying {size / copied / 1e9:.2f} GB/s, "
                f"SHA-256 alone {hashed / 1e9:.2f} GB/s",
                flush=True,
            )
    return rows
