"""MatShrink: an n by n block of each head's value (and key) projection becomes the identity, and is left out.

Source: Graef et al., "MatShrink", proposition 1, in dual form. Between a head's values and the output
projection nothing but a weighting of tokens happens, so any basis of its n channels will do; a basis in which
n input channels pass through as they are needs n·n weights less. The same holds between queries and keys
where neither position nor a norm comes between them, and in any pair of matrices with nothing between, as the
latents of multi-head latent attention without norms are. Which channels those are is found by trying (see
`heads`, `free_keys` and `latents`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tricks import shrink  # noqa: F401 - registers its operation
from tricks.attention import attention_of
from tricks.checkpoint import WIDTHS
from tricks.edits import Drop, Make, New
from tricks.heads import Attention, Span
from tricks.latents import Latent, latents
from tricks.layout import FLOATS, stored_whole
from tricks.place import Place
from tricks.recipe import Trick
from tricks.specimen import NoSpecimen
from tricks.subject import Draft, Subject

NAME = "matshrink"


class _Unfit(Exception):
    """Why one place stays as it is."""


@dataclass(frozen=True)
class _Merge:
    """A projection that takes on an identity, and the layers that take what it loses, in the full model.

    `kind`: of `latents` and `values` the rights are input channels, of `keys` the queries' output channels.
    """

    kind: str
    left: Span
    rights: tuple[Span, ...]


_Proposal = tuple[str, Callable[[], list[_Merge]]]
"""A place, and what makes the merges there, or raises _Unfit."""


def plan_matshrink(subject: Subject, trick: Trick) -> Draft:
    """Plan the smaller projections of every attention block, and of every pair of matrices.

    `form=compat` keeps names and shapes, with the identities stored: stock code loads it and nothing is
    saved. `form=stored` leaves them out, with code that ships. `pivot=first` takes the first channels of each
    head, as the naive form does, and is there to be compared with.
    """
    draft = Draft(savings={"weight_bytes_saved": 0, "multiplications_per_token_saved": 0})
    try:
        small, found = attention_of(subject)
    except NoSpecimen as reason:
        return Draft([Place(NAME, "attention", False, str(reason))])
    for proposals in _proposals(subject.model, small, found):
        merges: list[_Merge] = []
        for where, propose in proposals:
            try:
                proposed = propose()
                _check(subject, proposed)
            except _Unfit as reason:
                draft.places.append(Place(NAME, where, False, str(reason)))
                continue
            draft.places.append(Place(NAME, where, True, _describe(proposed)))
            merges += proposed
        if merges:
            _carry_out(subject, trick, merges, draft)
    if not draft.places:
        draft.places.append(
            Place(NAME, "attention", False, "no attention block with an output projection was found")
        )
    return draft


def _proposals(model: nn.Module, small: nn.Module, found: list[Attention]) -> Iterator[list[_Proposal]]:
    """What is tried, by operation. Latents come first: what follows leaves their identities alone."""
    pairs: dict[str, list[Latent]] = {}
    for pair in latents(small):
        pairs.setdefault(pair.where, []).append(pair)

    def latent(pair: Latent) -> _Proposal:
        return f"{pair.left.path} (with {', '.join(pair.rights)})", partial(_latent, model, small, pair)

    for one in found:
        proposals = [latent(pair) for pair in pairs.pop(one.where, [])]
        proposals.append((one.where, partial(_values, model, small, one)))
        if one.heads:
            proposals.append((f"{one.where} (queries and keys)", partial(_keys, model, small, one)))
        yield proposals
    for several in pairs.values():
        yield [latent(pair) for pair in several if pair.reason is None]


def _latent(model: nn.Module, small: nn.Module, pair: Latent) -> list[_Merge]:
    if pair.reason:
        raise _Unfit(pair.reason)
    left = _wider(pair.left, small, model, outputs=True)
    return [_Merge("latents", left, tuple(Span(path, 0, left.size) for path in pair.rights))]


def _values(model: nn.Module, small: nn.Module, one: Attention) -> list[_Merge]:
    if one.value_reason:
        raise _Unfit(one.value_reason)
    return [
        _Merge(
            "values",
            _wider(head.value, small, model, outputs=True),
            tuple(_wider(span, small, model, outputs=False) for span in head.outputs),
        )
        for head in one.heads
    ]


def _keys(model: nn.Module, small: nn.Module, one: Attention) -> list[_Merge]:
    if one.key_reason:
        raise _Unfit(one.key_reason)
    return [
        _Merge(
            "keys",
            _wider(head.key, small, model, outputs=True),
            tuple(_wider(span, small, model, outputs=True) for span in head.queries),
        )
        for head in one.heads
        if head.key
    ]


def _check(subject: Subject, merges: list[_Merge]) -> None:
    for path in _paths(merges):
        if taken := subject.claimed(path):
            raise _Unfit(f"{taken} takes {path} for itself")
    _names(subject, merges)
    for merge in merges:
        if merge.left.size >= _sizes(subject.model, merge.left.path)[0]:
            raise _Unfit(
                f"{merge.left.path} makes {merge.left.size} channels of no more than as many: the two "
                "matrices would rather be multiplied"
            )
    for path in {merge.left.path for merge in merges}:
        _groups(path, merges)


def _describe(merges: list[_Merge]) -> str:
    size = merges[0].left.size
    if merges[0].kind == "latents":
        return f"loses {size} x {size} weights"
    return f"{len(merges)} {merges[0].kind[:-1]} heads lose {size} x {size} weights each"


def _paths(merges: list[_Merge]) -> list[str]:
    return sorted({span.path for merge in merges for span in (merge.left, *merge.rights)})


def _names(subject: Subject, merges: list[_Merge]) -> dict[str, str]:
    """Parameter -> checkpoint tensor, of all linear layers that `merges` change."""
    model = subject.model
    wanted = [
        f"{path}.{name}"
        for path in _paths(merges)
        for name, _ in model.get_submodule(path).named_parameters()
    ]
    names: dict[str, str] = {}
    for name, tensor in stored_whole(model, subject.checkpoint, wanted).items():
        if tensor is None or subject.checkpoint.tensors[tensor].dtype not in FLOATS:
            raise _Unfit(f"{name} is not in the checkpoint as one tensor of floating-point numbers")
        names[name] = tensor
    return names


def _carry_out(subject: Subject, trick: Trick, merges: list[_Merge], draft: Draft) -> None:
    """Add to `draft` the operation that carries out `merges`, and what it saves."""
    stored = trick.option("form") == "stored"
    names, paths = _names(subject, merges), _paths(merges)
    lefts = sorted({merge.left.path for merge in merges})
    groups = {path: _groups(path, merges) for path in lefts} if stored else {}
    options = {
        "transposed": [path for path in paths if isinstance(subject.model.get_submodule(path), Conv1D)],
        "merges": [
            {"kind": merge.kind, "left": _plain(merge.left), "rights": [_plain(one) for one in merge.rights]}
            for merge in merges
        ],
        "pivot": trick.option("pivot"),
        "groups": groups,
    }
    outputs, dropped = _outputs(subject, names, groups)
    draft.edits += [Make("matshrink.block", names, outputs, options), *(Drop(name) for name in dropped)]
    draft.claims |= dict.fromkeys(paths, NAME)
    if not stored:
        return
    draft.parts, draft.stock_loads = (NAME,), False
    linears = draft.config.setdefault("tricksmith", {NAME: {"linears": []}})[NAME]["linears"]
    for path in lefts:
        inputs, width = _sizes(subject.model, path)
        linears.append({"path": path, "inputs": inputs, "outputs": width, "groups": groups[path]})
    for merge in merges:
        element = WIDTHS[subject.checkpoint.tensors[names[f"{merge.left.path}.weight"]].dtype]
        size = merge.left.size
        draft.savings["weight_bytes_saved"] += size * size * element - size * WIDTHS["I32"]
        draft.savings["multiplications_per_token_saved"] += size * size


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


def _groups(path: str, merges: list[_Merge]) -> list[dict[str, int]]:
    """The blocks of rows of the linear layer `path`, as runs of equal blocks at equal distances."""
    result = []
    for kind in ("latents", "values", "keys"):
        spans = [merge.left for merge in merges if merge.kind == kind and merge.left.path == path]
        starts = sorted(span.start for span in spans)
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


def _wider(span: Span, small: nn.Module, model: nn.Module, outputs: bool) -> Span:
    before, after = _sizes(small, span.path)[outputs], _sizes(model, span.path)[outputs]
    common = math.gcd(before, after)
    start, size = span.start * after, span.size * after
    if start % before or size % before:
        raise _Unfit(f"its heads do not divide its channels ({after // common} to {before // common})")
    return Span(span.path, start // before, size // before)
