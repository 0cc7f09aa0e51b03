"""Bias slots that an architecture can have and this checkpoint does not.

A norm's bias moves into the biases of the linear layers that read it. Where they have none, the configuration
may offer them (`attention_bias` and its like): the switch is found by building the model with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tricks.edits import Make, New
from tricks.errors import BadInput
from tricks.layout import key_of, saved_shapes
from tricks.model import Blueprint, build, read_wiring
from tricks.operations import Result, Value, operation
from tricks.subject import Subject
from tricks.wiring import Wiring

_SWITCHES = {"no_bias": False}
"""Switches that are on when they say False; any other has "bias" in its name and is on when it says True."""


@dataclass(frozen=True)
class Widened:
    """A subject with its biases switched on.

    `config` is the patch of config.json that does it; `slots` maps the name of each new bias to the edit that
    makes it, all zeros.
    """

    subject: Subject
    config: dict[str, Any]
    slots: dict[str, Make]


def widened(subject: Subject) -> Widened | None:
    """The subject with those biases switched on that some norm's bias needs; None where that helps none."""
    if not any(_lacks(subject.wiring, norm.gain) for norm in subject.wiring.norms):
        return None
    switches = list(_switches(subject))
    everything = _build(subject, switches)
    if everything is None:
        return None
    wiring = read_wiring(everything)
    needed = {
        wiring.bias_slots[consumer.param]
        for norm in subject.wiring.norms
        if _lacks(subject.wiring, norm.gain) and not _lacks(wiring, norm.gain)
        for consumer in norm.consumers
    } - _names(subject.model)
    useful = [switch for switch in switches if _adds(subject, switch) & needed]
    model = _build(subject, useful) if useful else None
    if model is None:
        return None
    new = _names(model) - _names(subject.model)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    if any(len(shapes[name]) != 1 for name in new) or _names(subject.model) - _names(model):
        return None
    try:
        slots = dict(_slots(model, subject, new))
    except KeyError:
        return None
    patch: dict[str, Any] = {}
    for part, key, value in useful:
        (patch.setdefault(part, {}) if part else patch)[key] = value
    return Widened(replace(subject, model=model, wiring=read_wiring(model)), patch, slots)


def _lacks(wiring: Wiring, gain: str) -> bool:
    """Whether a bias slot is all that a norm wants."""
    norm = next(norm for norm in wiring.norms if norm.gain == gain)
    plain = not norm.blocks and norm.bias is not None and not norm.scaled_between
    return plain and any(consumer.param not in wiring.bias_slots for consumer in norm.consumers)


Switch = tuple[str, str, bool]
"""(configuration inside the configuration, or "", field, the value that switches biases on)"""


def _switches(subject: Subject) -> Iterator[Switch]:
    fields = subject.config.to_dict()
    for part, inside in (("", fields), ("text_config", fields.get("text_config") or {})):
        for key, value in inside.items():
            on = _SWITCHES.get(key, True)
            if "bias" in key and isinstance(value, bool) and value is not on:
                yield part, key, on


def _build(subject: Subject, switches: list[Switch]) -> nn.Module | None:
    config = copy.deepcopy(subject.config)
    for part, key, value in switches:
        setattr(getattr(config, part) if part else config, key, value)
    try:
        return build(Blueprint(type(subject.model).__name__, config), "meta", torch.float32)
    except BadInput:
        return None


def _adds(subject: Subject, switch: Switch) -> set[str]:
    model = _build(subject, [switch])
    return set() if model is None else _names(model) - _names(subject.model)


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _slots(model: nn.Module, subject: Subject, new: set[str]) -> Iterator[tuple[str, Make]]:
    """Each new bias as the checkpoint will name it, beside the weight it belongs to."""
    before = saved_shapes(subject.model)
    for name, shape in saved_shapes(model).items():
        if name in before:
            continue
        sibling = name.removesuffix("bias") + "weight"
        weight = key_of(sibling, str(getattr(model, "base_model_prefix", "")), subject.checkpoint)
        if weight is None:
            raise KeyError(name)
        slot = weight.removesuffix("weight") + "bias"
        made = New(slot, subject.checkpoint.tensors[weight].dtype, tuple(shape))
        yield slot, Make("zeros", {"beside": weight}, {"zeros": made}, {"shape": list(shape)})


@operation("zeros")
def zeros(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """Zeros of `options["shape"]`, in the file of the tensor that they stand beside."""
    return {"zeros": torch.zeros(options["shape"], dtype=torch.float64)}
