"""Whether two folders hold the same weights: `benchmarks.same_weights ONE OTHER`, JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def same_weights(one: Path, other: Path) -> dict[str, Any]:
    """Compare all tensors by value, whatever file and dtype they are in.

    Returns:
        `tensors`, how many there are; `identical`, how many are equal in every value; and
        `largest_difference`, relative to the largest value of its tensor.
    """
    import torch
    from safetensors import safe_open

    def where(folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def read(path: Path, name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name).float()
        return tensor

    ours, theirs = where(one), where(other)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"the tensors differ: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    identical, largest = 0, 0.0
    for name in ours:
        left, right = read(ours[name], name), read(theirs[name], name)
        difference = (left - right).abs().max().item()
        identical += difference == 0
        largest = max(largest, difference / right.abs().max().item())
    return {"tensors": len(ours), "identical": identical, "largest_difference": largest}


if __name__ == "__main__":
    print(json.dumps(same_weights(Path(sys.argv[1]), Path(sys.argv[2]))))
