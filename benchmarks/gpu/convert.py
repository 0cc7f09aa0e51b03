"""Conversion beside a card: bytes per second of FlashNorm, against a copy of the same files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.geometry import DEVICE, source
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
        hashed, side_by_side = digests(1), digests(os.cpu_count() or 1)
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
                "sha256_threads_bytes_per_second": side_by_side,
                "card_bytes_per_second": through_card(),
                "processors": os.cpu_count(),
            }
            rows.append(row)
            print(
                f"{trick}: {size / took / 1e9:.2f} GB/s, copying {size / copied / 1e9:.2f} GB/s, "
                f"SHA-256 alone {hashed / 1e9:.2f} GB/s, a file on each core {side_by_side / 1e9:.2f}, "
                f"to the card, scaled and back {row['card_bytes_per_second'] / 1e9:.2f}",
                flush=True,
            )
    return rows


def digests(files: int) -> float:
    """Bytes per second of SHA-256 over as many files at once, one thread each."""
    data = bytes(1 << 28)
    begin = time.perf_counter()
    with ThreadPoolExecutor(files) as pool:
        list(pool.map(hashlib.sha256, [data] * files))
    return files * len(data) / (time.perf_counter() - begin)


def through_card() -> float:
    """Bytes per second of weights that go to the card, are scaled there and come back."""
    weight = torch.randn(1 << 26).to(torch.bfloat16)
    gain = torch.randn(1 << 12, device=DEVICE)
    (weight[: 1 << 12].to(DEVICE) * gain).cpu()
    begin = time.perf_counter()
    (weight.to(DEVICE).view(-1, 1 << 12) * gain).to(torch.bfloat16).cpu()
    return weight.nbytes / (time.perf_counter() - begin)
