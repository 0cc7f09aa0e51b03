"""Draft a plan: build the model without weights, read its wiring, and ask each trick where it fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tricks.approximate import plan_approximate
from tricks.checkpoint import Checkpoint
from tricks.families import own_part
from tricks.flashnorm import plan_flashnorm
from tricks.matshrink import plan_matshrink
from tricks.merged import merged
from tricks.model import build, read_config, read_wiring
from tricks.plan import Plan
from tricks.precompute import plan_precompute
from tricks.recipe import TRICKS, Trick
from tricks.skipless import plan_skipless
from tricks.slim import plan_slim
from tricks.subject import Draft, Subject
from tricks.tally import check_tensors
from tricks.turns import nothing_collected, one_at_a_time

PLANNERS: Mapping[str, Callable[[Subject, Trick], Draft]] = {
    "skipless": plan_skipless,
    "precompute": plan_precompute,
    "flashnorm": plan_flashnorm,
    "slim": plan_slim,
    "matshrink": plan_matshrink,
    "approximate": plan_approximate,
}
"""Trick name -> the function that plans it."""


@one_at_a_time
def draft_plan(checkpoint: Checkpoint, tricks: Sequence[Trick]) -> Plan:
    """A plan without its proof, of a model that nobody looks at again: a small one that proves another's."""
    return draft_on(_read(checkpoint), tricks)


_latest: list[tuple[Checkpoint, Subject]] = []
"""The checkpoint that was read last, and what came of it."""


@one_at_a_time
def subject_of(checkpoint: Checkpoint) -> Subject:
    """What tricks are asked about: the model's class without weights, and its wiring.

    The latest one is kept: who looks at a model plans it next, and reading a deep one's wiring takes longer
    than all the rest.
    """
    if not _latest or _latest[0][0] != checkpoint:
        _latest.clear()  # first, so that two are never held at once
        # Its own copy of the config: what a caller does to theirs must not make another model look the same.
        kept = replace(checkpoint, config=copy.deepcopy(checkpoint.config))
        _latest.append((kept, _read(checkpoint)))
    return _latest[0][1]


def _read(checkpoint: Checkpoint) -> Subject:
    blueprint = read_config(checkpoint.config, checkpoint.name)
    with nothing_collected():
        model = build(blueprint, "meta", torch.float32)
        unloaded = check_tensors(model, checkpoint)
        wiring = read_wiring(model)
    return Subject(model, wiring, checkpoint, blueprint.config, unloaded, blueprint.architecture)


@one_at_a_time
def draft_on(subject: Subject, tricks: Sequence[Trick]) -> Plan:
    """A plan without its proof; the tricks are carried out in the order of `TRICKS`.

    The subject stays as it was.
    """
    subject = replace(subject, claims={})
    order = list(TRICKS)
    drafts: list[Draft] = []
    for trick in sorted(tricks, key=lambda t: order.index(t.name)):
        drafts.append(PLANNERS[trick.name](subject, trick))
        subject = drafts[-1].leaves or subject
        subject.claims.update(drafts[-1].claims)
    own = own_part(subject.architecture)
    marks: dict[str, Any] = {"tricksmith": {part: {} for part in own}} if own else {}
    return Plan(
        model=subject.checkpoint.name,
        architecture=subject.architecture,
        tricks=tuple(tricks),
        places=tuple(place for draft in drafts for place in draft.places),
        edits=tuple(edit for draft in drafts for edit in draft.edits),
        savings=_together(drafts),
        lossless=all(draft.lossless for draft in drafts),
        config=merged(marks, *(draft.config for draft in drafts)),
        parts=(*own, *(part for draft in drafts for part in draft.parts)),
        stock_loads=all(draft.stock_loads for draft in drafts),
    )


def _together(drafts: Sequence[Draft]) -> dict[str, int | float]:
    """The figures of all drafts; what several of them save adds up."""
    result: dict[str, int | float] = {}
    for draft in drafts:
        for name, count in draft.savings.items():
            result[name] = result[name] + count if name.endswith("_saved") and name in result else count
    return result
