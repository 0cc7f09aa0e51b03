"""FlashNorm: each norm's gain moves into every linear layer that reads the norm.

Source: Graef et al., "FlashNorm", section 3.1, proposition 1. With z = (base(a) ⊙ g + β)·W, in torch's
layout W [out, in]: W* = W·diag(g) scales W's input columns, and c* = c + W·β (the *unfolded* W) takes the
norm's bias. The norm keeps an identity gain, so stock code loads the result: that is the form `compat`, on
which the other forms build (see `forms`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tricks.checkpoint import Checkpoint
from tricks.edits import Edit, Fill, Make, Scale, Shift
from tricks.errors import BadInput
from tricks.families import GENERATIVE, auto_class
from tricks.forms import shaped
from tricks.layout import FLOATS, Axis, locate
from tricks.noted import Norm
from tricks.place import Place
from tricks.recipe import Trick
from tricks.slots import widened
from tricks.subject import Draft, Subject
from tricks.wiring import Wiring

NAME = "flashnorm"


def plan_flashnorm(subject: Subject, trick: Trick) -> Draft:
    """Plan the fold of every norm of a model.

    Raises:
        BadInput: a norm's tensors in the checkpoint have other shapes than the config says.
    """
    wider = widened(subject)
    if wider is not None:
        subject = wider.subject
    slots = wider.slots if wider else {}
    wiring, checkpoint = subject.wiring, subject.checkpoint
    draft = Draft(config=dict(wider.config) if wider else {}, edits=[*slots.values()])
    elements = 0
    reasons = {norm.gain: _kept(norm, subject) or wiring.foldable(norm) for norm in wiring.norms}
    marks = dict(_marks(wiring, reasons))
    found = locate(subject.model, checkpoint, marks)
    for norm in wiring.norms:
        reason = reasons[norm.gain]
        edits: list[Edit] = []
        if reason is None:
            try:
                edits = _edits(norm, marks, found, checkpoint, slots)
            except _Left as left:
                reason = str(left)
        if reason is not None:
            draft.places.append(Place(NAME, norm.module, False, reason))
            continue
        draft.edits += edits
        elements += norm.size
        into = sorted({c.param.removesuffix(".weight") for c in norm.consumers})
        draft.places.append(
            Place(NAME, norm.module, True, "folded into " + ", ".join(_short(into, norm.module)))
        )
    for module in wiring.unmeasured:
        draft.places.append(Place(NAME, module, False, "its gain is not a plain factor of its output"))
    draft.savings = {
        "norms": len(draft.places),
        "norms_folded": sum(place.fits for place in draft.places),
        "gain_elements_folded": elements,
        "bias_elements_added": sum(math.prod(slot.outputs["zeros"].shape) for slot in slots.values()),
        "weight_bytes_saved": 0,
    }
    return shaped(subject, draft, trick.option("form"))


def _kept(norm: Norm, subject: Subject) -> str | None:
    """Why a norm must stay whatever its wiring allows."""
    readers = [consumer.param.rpartition(".")[0] for consumer in norm.consumers]
    taken = next((trick for path in (norm.module, *readers) if (trick := subject.claimed(path))), None)
    if taken:
        return f"what it does is part of {taken} already"
    model: Any = subject.model
    body = model.base_model_prefix + "."
    if not norm.module.startswith(body) or all(c.param.startswith(body) for c in norm.consumers):
        return None
    if auto_class(type(model).__name__) not in GENERATIVE:
        return "its output is the embedding that this checkpoint is used for, so it keeps its gain"
    if subject.unloaded:
        return (
            f"the checkpoint holds tensors that transformers does not load, like {subject.unloaded[0]}, "
            "which may read its output"
        )
    return None


class _Left(Exception):
    """Why one norm stays as it is."""


def _short(names: list[str], module: str) -> list[str]:
    """Names without the part they share with the norm's own path."""
    stem = module.rpartition(".")[0] + "."
    return [name.removeprefix(stem) for name in names]


def _marks(wiring: Wiring, reasons: dict[str, str | None]) -> Iterator[tuple[str, tuple[int, int]]]:
    """A mark for each vector and each contracted axis: even for gains and weights, odd for the biases."""
    for number, norm in enumerate(wiring.norms):
        if reasons[norm.gain] is not None:
            continue
        yield norm.gain, (0, 4 * number)
        for consumer in norm.consumers:
            yield consumer.param, (consumer.axis, 4 * number + 1)
        if norm.bias is not None:
            yield norm.bias, (0, 4 * number + 2)
            for consumer in norm.consumers:
                # The last axis is the product's output; stacked experts come before it.
                yield wiring.bias_slots[consumer.param], (-1, 4 * number + 3)


def _edits(
    norm: Norm,
    marks: dict[str, tuple[int, int]],
    found: dict[int, tuple[Axis, ...]],
    checkpoint: Checkpoint,
    new: Mapping[str, Make],
) -> list[Edit]:
    base = marks[norm.gain][1]
    gain = _only(found.get(base), norm.gain)
    weights = found.get(base + 1)
    if not weights:
        raise _Left("its linear layers are not in the checkpoint under names that transformers gives them")
    tensors = checkpoint.tensors
    for axis in (gain, *weights):
        if tensors[axis.tensor].dtype not in FLOATS:
            raise _Left(
                f"{axis.tensor} is stored as {tensors[axis.tensor].dtype}, which cannot take a factor"
            )
        size = tensors[axis.tensor].shape[axis.axis]
        if size != norm.size:
            raise BadInput(
                f"{checkpoint.name}: {axis.tensor} has {size} channels where the config says {norm.size}; "
                "config.json and the weights belong to different models"
            )
    edits: list[Edit] = []
    if norm.bias is not None:
        beta = _only(found.get(base + 2), norm.bias)
        there = {axis.tensor for axis in found.get(base + 3, ())}
        for weight in weights:
            slot = weight.tensor.removesuffix("weight") + "bias"
            shape = list(tensors[weight.tensor].shape)
            del shape[weight.axis]
            made = new[slot].outputs["zeros"] if slot in new else None
            stored = tensors[slot] if slot in there else made
            if stored is None or list(stored.shape) != shape or stored.dtype not in FLOATS:
                raise _Left(
                    f"its bias has nowhere to go: the checkpoint has no bias that fits {weight.tensor}"
                )
            edits.append(Shift(slot, weight.tensor, weight.axis, beta.tensor))
        edits.append(Fill(beta.tensor, 0.0))
    # The bias goes through the weights as they were, so they are scaled last.
    edits += [Scale(w.tensor, w.axis, gain.tensor, norm.offset) for w in weights]
    edits.append(Fill(gain.tensor, 1.0 - norm.offset))
    return edits


def _only(axes: tuple[Axis, ...] | None, param: str) -> Axis:
    if axes is None or len(axes) != 1:
        raise _Left(f"{param} is not in the checkpoint under a name that transformers gives it")
    return axes[0]
