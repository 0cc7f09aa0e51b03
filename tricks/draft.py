"""Draft a plan: build the model without weights, read its wiring, and ask each trick where it fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tricks.checkpoint import Checkpoint
from tricks.flashnorm import plan_flashnorm
from tricks.model import build, read_config, read_wiring
from tricks.plan import Plan
from tricks.recipe import Trick


def draft_plan(checkpoint: Checkpoint, tricks: Sequence[Trick]) -> Plan:
    """A plan without its proof."""
    config = read_config(checkpoint.config, checkpoint.name)
    model = build(config, "meta", torch.float32)
    wiring = read_wiring(model)
    fold = plan_flashnorm(model, wiring, checkpoint)
    return Plan(
        model=checkpoint.name,
        architecture=type(model).__name__,
        tricks=tuple(tricks),
        places=tuple(fold.places),
        edits=tuple(fold.edits),
        savings={
            "norms": len(fold.places),
            "norms_folded": sum(place.fits for place in fold.places),
            "gain_elements_folded": fold.gain_elements,
            "weight_bytes_saved": 0,
        },
    )
