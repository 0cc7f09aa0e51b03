"""What the worker and its child process say to each other: one JSON object per line.

The worker asks:      {"do": "plan" | "convert" | "check_evidence" | "verify" | "write", ...arguments}
                      or {"do": "cancel"}
The child answers:    {"report": [unit, done, total]}, or {"tell": {...}} where it writes, any number of
                      times, then
                      {"done": {...}} or {"error": KIND, "text": one line}
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from tricks import Checkpoint, TensorInfo


class Error(StrEnum):
    """Why a child could not do what it was asked."""

    BAD_INPUT = "bad input"
    CANCELLED = "cancelled"
    DISK_FULL = "disk full"
    GPU = "gpu"
    GPU_MEMORY = "gpu memory"
    HUB = "hub"
    MEMORY = "memory"
    UNEXPECTED = "unexpected"


def checkpoint_to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Config and tensors as plain JSON types."""
    return {
        "name": checkpoint.name,
        "config": checkpoint.config,
        "files": list(checkpoint.files),
        "index": checkpoint.index,
        "tensors": [
            [info.name, info.file, info.dtype, list(info.shape), info.begin, info.end]
            for info in checkpoint.tensors.values()
        ],
    }


def checkpoint_from_json(data: dict[str, Any]) -> Checkpoint:
    """The inverse of `checkpoint_to_json`."""
    tensors = {
        name: TensorInfo(name, file, dtype, tuple(shape), begin, end)
        for name, file, dtype, shape, begin, end in data["tensors"]
    }
    return Checkpoint(data["name"], data["config"], tensors, tuple(data["files"]), data["index"])
