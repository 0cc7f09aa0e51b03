"""How long a comparison will take, about, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from evals.precision import WIDER, storage_dtype, weight_count
from evals.recipe import Recipe

PASSES = 2.2
OVERLAP = 4 / 3  # tokens read for each token scored, with sliding windows
EFFICIENCY = 0.4  # of a matrix product's speed, with attention and all that is not one
# A task's documents are not counted before its data are loaded; this is a usual size.
TASK_TOKENS = 200 * 4 * 100
LOADING = 3.0  # seconds of four loads of a small model and of the imports that are still to come


def estimate_seconds(
    source: Path, recipe: Recipe, tasks: Sequence[str] = (), device: str | None = None
) -> float:
    """Two operations for each weight and token, at the speed of a matrix product measured now (0.1 s).

    An upper bound for mixtures of experts, which use a part of their weights.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    storage = storage_dtype(source)
    weights = weight_count(source)
    named = tasks or recipe.tasks
    share = 1.0 if recipe.limit is None else min(1.0, recipe.limit / 200)
    seconds = recipe.tokens * OVERLAP * PASSES * 2 * weights / _speed(WIDER[storage], device)
    seconds += 2 * len(named) * TASK_TOKENS * share * 2 * weights / _speed(storage, device)
    return LOADING + seconds


def _speed(dtype: torch.dtype, device: str) -> float:
    """Operations per second of a matrix product."""
    a = torch.ones((256, 1024), dtype=dtype, device=device)
    b = torch.ones((1024, 1024), dtype=dtype, device=device)
    done, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < 0.05 or done < 2:
        product = a @ b
        product[0, 0].item()  # waits for a GPU
        done += 1
    return EFFICIENCY * 2 * a.shape[0] * a.shape[1] * b.shape[1] * done / passed
