"""MatShrink: an n by n block of each head's value (and key) projection becomes the identity, and is left out.

Source: Graef et al., "MatShrink", proposition 1, in dual form. Between a head's values and the output
projection nothing but a weighting of tokens happens, so any basis of its n channels will do; a basis in which
n input channels pass through as they are needs n·n weights less. The same holds between queries and keys
where neither position nor a norm comes between them. Which channels those are is found by trying (see
`heads`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tricks import shrink  # noqa: F401 - registers its operation
from tricks.checkpoint import WIDTHS
from tricks.edits import Drop, Edit, Make, New
from tricks.attention import attention_of
from tricks.heads import Attention, Head, Span
from tricks.layout import FLOATS, stored_whole
from tricks.place import Place
from tricks.recipe import Trick
from tricks.specimen import NoSpecimen
from tricks.subject import Draft, Subject

NAME = "matshrink"


class _Unfit(Exception):
    """Why one attention block stays as it is."""


@dataclass
class _Shrunk:
    """One block's part of the plan."""

    edits: list[Edit]
    linears: list[dict[str, Any]]
    saved_elements: int
    index_elements: int
    element: int
    detail: str
    claims: list[str] = field(default_factory=list)


def plan_matshrink(subject: Subject, trick: Trick) -> Draft:
    """Plan the smaller projections of every attention block.

    `form=compat` keeps names and shapes, with the identities stored: stock code loads it and nothing is
    saved. `form=stored` leaves them out, with code that ships. `pivot=first` takes the first channels of each
    head, as the naive form does, and is there to be compared with.
    """
    draft = Draft()
    try:
        small, found = attention_of(subject)
    except NoSpecimen as reason:
        return Draft([Place(NAME, "attention", False, str(reason))])
    stored = trick.option("form") == "stored"
    linears: list[dict[str, Any]] = []
    saved = 0
    for one in found:
        try:
            part = _shrink(subject, small, one, stored, trick.option("pivot"))
        except _Unfit as reason:
            draft.places.append(Place(NAME, one.where, False, str(reason)))
            continue
        draft.places.append(Place(NAME, one.where, True, part.detail))
        if one.key_reason:
            draft.places.append(Place(NAME, f"{one.where} (queries and keys)", False, one.key_reason))
        draft.edits += part.edits
        draft.claims |= dict.fromkeys(part.claims, NAME)
        linears += part.linears
        if stored:
            saved += part.saved_elements * part.element - part.index_elements * WIDTHS["I32"]
    if not found:
        draft.places.append(Place(NAME, "attention", False, "no attention block was found"))
    draft.savings = {"weight_bytes_saved": saved}
    if linears:
        draft.config = {"tricksmith": {NAME: {"linears": linears}}}
        draft.parts, draft.stock_loads = (NAME,), False
    return draft


def _shrink(subject: Subject, small: nn.Module, one: Attention, stored: bool, pivot: str) -> _Shrunk:
    if one.value_reason is not None:
        raise _Unfit(one.value_reason)
    spans = [
        span for head in one.heads for span in (head.value, head.key, *head.outputs, *head.queries) if span
    ]
    paths = sorted({span.path for span in spans})
    for path in paths:
        if taken := subject.claimed(path):
            raise _Unfit(f"{path} belongs to {taken}")
    heads = [_grown(head, small, subject.model) for head in one.heads]
    wanted = [
        f"{path}.{name}" for path in paths for name, _ in subject.model.get_submodule(path).named_parameters()
    ]
    names: dict[str, str] = {}
    for name, tensor in stored_whole(subject.model, subject.checkpoint, wanted).items():
        if tensor is None or subject.checkpoint.tensors[tensor].dtype not in FLOATS:
            raise _Unfit(f"{name} is not in the checkpoint as one tensor of floating-point numbers")
        names[name] = tensor
    keys = [head for head in heads if head.key is not None]
    lefts = {head.value.path for head in heads} | {head.key.path for head in keys if head.key}
    _check_sizes(subject.model, heads)
    groups = {path: _groups(path, heads) for path in sorted(lefts)}
    merges: list[dict[str, Any]] = [
        {"kind": "values", "left": _plain(head.value), "rights": [_plain(one) for one in head.outputs]}
        for head in heads
    ]
    merges += [
        {"kind": "keys", "left": _plain(head.key), "rights": [_plain(one) for one in head.queries]}
        for head in keys
        if head.key
    ]
    options = {
        "transposed": [path for path in paths if isinstance(subject.model.get_submodule(path), Conv1D)],
        "merges": merges,
        "pivot": pivot,
        "groups": groups if stored else {},
    }
    element = WIDTHS[subject.checkpoint.tensors[names[f"{one.output}.weight"]].dtype]
    outputs, dropped = _outputs(subject, names, groups if stored else {})
    saved = sum(head.value.size**2 for head in heads) + sum(head.key.size**2 for head in keys if head.key)
    index = sum(head.value.size for head in heads) + sum(head.key.size for head in keys if head.key)
    size = heads[0].value.size
    detail = f"{len(heads)} value heads lose {size} x {size} weights each"
    if keys and keys[0].key:
        detail += f", their keys {keys[0].key.size} x {keys[0].key.size}"
    edits: list[Edit] = [Make("matshrink.block", names, outputs, options), *(Drop(name) for name in dropped)]
    linears = []
    for path in sorted(lefts) if stored else ():
        inputs, width = _sizes(subject.model, path)
        linears.append({"path": path, "inputs": inputs, "outputs": width, "groups": groups[path]})
    return _Shrunk(edits, linears, saved, index, element, detail, paths)


def _check_sizes(model: nn.Module, heads: Iterable[Head]) -> None:
    for head in heads:
        for span in (head.value, head.key):
            if span is not None and span.size >= _sizes(model, span.path)[0]:
                raise _Unfit(
                    "its heads are as wide as their input: the two matrices would rather be multiplied"
                )


def _outputs(
    subject: Subject, names: dict[str, str], groups: dict[str, list[dict[str, int]]]
) -> tuple[dict[str, New], list[str]]:
    """What the operation writes, by role, and the tensors that this replaces under other names."""
    outputs: dict[str, New] = {}
    dropped = []
    for role, name in names.items():
        path = role.rpartition(".")[0]
        info = subject.checkpoint.tensors[name]
        if path not in groups or role.endswith(".bias"):
            outputs[role] = New(name, info.dtype, info.shape)
            continue
        dropped.append(name)
        inputs, width = _sizes(subject.model, path)
        stem = name.removesuffix("weight")
        left = width
        for number, group in enumerate(groups[path]):
            count, size = group["count"], group["size"]
            rest = (count, size, inputs - size)
            outputs[f"{path}.shrunk_{number}"] = New(f"{stem}shrunk_{number}", info.dtype, rest)
            outputs[f"{path}.index_{number}"] = New(f"{stem}index_{number}", "I32", (count, size))
            left -= count * size
        if left:
            outputs[f"{path}.dense"] = New(f"{stem}dense", info.dtype, (left, inputs))
    return outputs, dropped


def _groups(path: str, heads: list[Head]) -> list[dict[str, int]]:
    """The blocks of rows of the linear layer `path`, as runs of equal blocks at equal distances."""
    result = []
    for spans in ([head.value for head in heads], [head.key for head in heads if head.key]):
        starts = sorted(span.start for span in spans if span.path == path)
        if not starts:
            continue
        step = starts[1] - starts[0] if len(starts) > 1 else spans[0].size
        if starts != [starts[0] + step * number for number in range(len(starts))]:
            raise _Unfit("its heads do not follow each other at equal distances")
        result.append({"size": spans[0].size, "first": starts[0], "step": step, "count": len(starts)})
    return result


# --- from the specimen to the model ------------------------------------------------------------------


def _plain(span: Span) -> list[Any]:
    return [span.path, span.start, span.size]


def _sizes(model: nn.Module, path: str) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    module = model.get_submodule(path)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return (
        (weight.shape[0], weight.shape[1])
        if isinstance(module, Conv1D)
        else (weight.shape[1], weight.shape[0])
    )


def _grown(head: Head, small: nn.Module, model: nn.Module) -> Head:
    """`head` with the full model's channels: every width of a specimen is the same part of the full one."""
    value = _wider(head.value, small, model, outputs=True)
    reading = tuple(_wider(span, small, model, outputs=False) for span in head.outputs)
    key = _wider(head.key, small, model, outputs=True) if head.key else None
    return Head(value, reading, key, tuple(_wider(span, small, model, outputs=True) for span in head.queries))


def _wider(span: Span, small: nn.Module, model: nn.Module, outputs: bool) -> Span:
    before, after = _sizes(small, span.path)[outputs], _sizes(model, span.path)[outputs]
    common = math.gcd(before, after)
    start, size = span.start * after, span.size * after
    if start % before or size % before:
        raise _Unfit(f"its heads do not divide its channels ({after // common} to {before // common})")
    return Span(span.path, start // before, size // before)
