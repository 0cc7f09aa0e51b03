"""How long a comparison will take, about, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from evals.precision import WIDER, storage_dtype, weight_count
from evals.recipe import Recipe, change

PASSES = 2.2
# The noise runs and the decoding of both models read this many tokens however short the text is. A limit that
# is not kept at first is looked at again, one pass a step, four at most.
LEAST_TOKENS = 500
OVERLAP = 4 / 3  # tokens read for each token scored, with sliding windows
EFFICIENCY = 0.4  # of a matrix product's speed, with attention and all that is not one
# A task's documents are not counted before its data are loaded; this is a usual size.
TASK_TOKENS = 200 * 4 * 100
LOADING = 3.0  # seconds of four loads of a small model and of the imports that are still to come


def estimate_seconds(
    source: Path, recipe: Recipe, tasks: Sequence[str] = (), device: str | None = None
) -> float:
    """As `estimate_for`, for the model in the folder `source`; `tasks` instead of the recipe's.

    Raises:
        BadInput: not a folder with weights.
    """
    recipe = change(recipe, {"tasks": list(tasks) or None})
    return estimate_for(weight_count(source), storage_dtype(source), recipe, device)


def estimate_for(weights: int, storage: torch.dtype, recipe: Recipe, device: str | None = None) -> float:
    """Seconds: two operations for each weight and token, at the speed of a matrix product measured now.

    An upper bound for mixtures of experts, which use a part of their weights. The measurement takes 0.1 s.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    share = 1.0 if recipe.limit is None else min(1.0, recipe.limit / 200)
    wider = WIDER.get(storage, torch.float64)
    fed = recipe.tokens * OVERLAP
    read = 2 * fed + max((PASSES - 2) * fed, LEAST_TOKENS)
    seconds = read * 2 * weights / _speed(wider, device)
    if recipe.tasks:  # a product in the storage dtype may take seconds where the processor knows none
        seconds += 2 * len(recipe.tasks) * TASK_TOKENS * share * 2 * weights / _speed(storage, device)
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
