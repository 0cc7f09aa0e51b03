"""FlashNorm's forms: what a result is, beside its folded gains, that stock code does not ask for.

- `compat`: nothing; the folded norms keep gains of one.
- `strict`: those gains are gone from the files, and the shipped norms have none.
- `center`: LayerNorms become RMSNorms (see `centred`).
- `cancel`: norms in front of linear layers in front of norms are gone (see `deferred`).
- `defer`: the norms' scale is applied after the linear layers (see `deferred`).

In every form the stock class, too, loads the result rightly: the shipped code makes use of what is in the
weights, and the weights do without it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tricks.centred import centring
from tricks.checkpoint import WIDTHS
from tricks.deferred import Unfit, cancelled, corrections, deferrable, describe, linear_row
from tricks.edits import Drop, Fill, Make
from tricks.flow import Flow
from tricks.layout import locate
from tricks.marks import marks
from tricks.normaliser import Normaliser
from tricks.noted import Norm
from tricks.place import Place
from tricks.rows import compact
from tricks.streams import Streams
from tricks.subject import Draft, Subject
from tricks.watch import Watch, watch

PART = "flashnorm"
_DONE = {"defer": "deferred", "cancel": "cancelled", "center": "centred"}


def shaped(subject: Subject, draft: Draft, form: str) -> Draft:
    """`draft`, in which gains are folded (form `compat`), in another form."""
    folded = {place.where for place in draft.places if place.fits}
    draft.config |= marks(folded, {place.where for place in draft.places if not place.fits})
    if form == "strict":
        return _strict(subject, draft, folded)
    if form in ("defer", "cancel"):
        return _deferred(subject, draft, folded, cancels=form == "cancel")
    if form == "center":
        return _centred(subject, draft, folded)
    return draft


def _centred(subject: Subject, draft: Draft, folded: set[str]) -> Draft:
    streams = watch(Streams, subject.model)
    added = {new.name for edit in draft.edits if isinstance(edit, Make) for new in edit.outputs.values()}
    found = centring(streams, subject, added)
    done = "LayerNorm becomes RMSNorm, as everything that writes to what it reads loses its mean"
    details = dict.fromkeys(found.norms, done)
    norms = [
        norm_row(name, replace(streams.normalisers[name], centres=False), name in folded)
        for name in found.norms
    ]
    if details:
        draft.edits += found.edits
        draft.savings["tensors_centred"] = len({edit.tensor for edit in found.edits})
    modules = [{"at": name} for name in found.modules]
    draft = _taken(draft, "center", details, found.reasons, norms=norms, centred=modules)
    if details and _input_embedding(subject.model) in found.lookups:
        draft.config["tricksmith"][PART]["inputs_embeds"] = True
    return draft


def _input_embedding(model: Any) -> str | None:
    """The path of the module that embeds the input's tokens."""
    embedding = model.get_input_embeddings()
    return next((name for name, module in model.named_modules() if module is embedding), None)


def _deferred(subject: Subject, draft: Draft, folded: set[str], cancels: bool) -> Draft:
    """Norms whose gain is folded, or not, with their scale behind the linear layers or gone."""
    flow = watch(Flow, subject.model)
    details: dict[str, str] = {}
    reasons: dict[str, str] = {}
    deferred: list[dict[str, Any]] = []
    linears: list[dict[str, Any]] = []
    corrected: list[dict[str, Any]] = []
    for name, normaliser in flow.normalisers.items():
        try:
            if any(row["at"] == name for row in corrected):
                raise Unfit("it makes good for the norm in front of it")
            if cancels:
                readers = cancelled(name, flow, subject)
                details[name] = describe(name, readers)
                corrected += [
                    norm_row(behind, flow.normalisers[behind], behind in folded)
                    | {"norm": name, "axes": list(end.axes)}
                    for behind, end in corrections(readers).items()
                ]
                linears += [linear_row(reader.name, name, reader.columns) for reader in readers]
            else:
                names = deferrable(name, flow, subject)
                details[name] = "its scale is applied after the product"
                linears += [linear_row(reader, name, None) for reader in names]
        except Unfit as unfit:
            reasons[name] = str(unfit)
            continue
        deferred.append(norm_row(name, normaliser, name in folded))
    form = "cancel" if cancels else "defer"
    return _taken(draft, form, details, reasons, deferred=deferred, linears=linears, corrected=corrected)


def _taken(
    draft: Draft,
    form: str,
    details: Mapping[str, str],
    reasons: Mapping[str, str],
    **rows: list[dict[str, Any]],
) -> Draft:
    """The draft with a form's details at the norms that take it, its reasons at the others, and its code."""
    if not details:
        return _nowhere(draft, reasons)
    places = {place.where: place for place in draft.places}
    for name, detail in details.items():
        old = places.get(name, Place(PART, name, False, "it has no gain"))
        done = f"{old.detail}; {detail}" if old.fits else f"{detail}; its gain stays ({old.detail})"
        places[name] = replace(old, fits=True, detail=done)
    for name, reason in reasons.items():
        if name in places:
            old = places[name]
            places[name] = replace(old, detail=f"{old.detail}; {form} does not apply: {reason}")
    draft.places = list(places.values())
    draft.savings[f"norms_{_DONE[form]}"] = len(details)
    draft.claims = {row["at"]: PART for several in rows.values() for row in several}
    return _with_part(draft, **{name: compact(several) for name, several in rows.items()})


def _nowhere(draft: Draft, reasons: Mapping[str, str]) -> Draft:
    """The answer where the form fits no norm: nothing is done, lest another form be taken for it."""
    places = [
        replace(place, fits=False, detail=reasons.get(place.where, place.detail)) for place in draft.places
    ]
    return Draft(places, savings={"norms": len(places), "norms_folded": 0})


def norm_row(at: str, normaliser: Normaliser, identity: bool) -> dict[str, Any]:
    """What takes the place of the norm `at`, as `shipped/modeling_flashnorm.Flash` reads it."""
    row: dict[str, Any] = {"at": at, "eps": normaliser.eps}
    gain = normaliser.gain
    if normaliser.centres:
        row["centres"] = True
    if gain is not None and not identity:
        row |= {"gain": gain.weight, "bias": gain.bias, "offset": gain.offset}
    return row


def _strict(subject: Subject, draft: Draft, folded: set[str]) -> Draft:
    seen = watch(Watch, subject.model)
    normalisers = seen.normalisers
    owners = _owners(subject.model)
    norms = [norm for norm in subject.wiring.norms if norm.module in folded]
    kept: dict[str, str] = {}
    rows, gone = [], set()
    for norm in norms:
        if norm.module not in normalisers:
            kept[norm.module] = "its gain of ones stays, as what it does beside is no plain normalisation"
        elif norm.module in seen.asked:
            kept[norm.module] = "its gain of ones stays, as other code reads it"
        elif owners[norm.gain] > 1:
            kept[norm.module] = "its gain of ones stays, as another module has it too"
        else:
            rows.append(norm_row(norm.module, normalisers[norm.module], True) | {"weightless": True})
            gone |= {norm.gain} | ({norm.bias} if norm.bias else set())
    if not rows:
        return _nowhere(draft, kept)
    marked = {name: (0, number) for number, name in enumerate(sorted(gone))}
    tensors = {
        axis.tensor for axes in locate(subject.model, subject.checkpoint, marked).values() for axis in axes
    }
    draft.edits = [
        Drop(edit.tensor) if isinstance(edit, Fill) and edit.tensor in tensors else edit
        for edit in draft.edits
    ]
    draft.places = [
        replace(place, detail=f"{place.detail}; {kept.get(place.where, 'its gain is gone')}")
        if place.fits
        else place
        for place in draft.places
    ]
    infos = [subject.checkpoint.tensors[name] for name in tensors]
    draft.savings["weight_bytes_saved"] = sum(WIDTHS[info.dtype] * math.prod(info.shape) for info in infos)
    draft.stock_loads = all(_identity_by_default(subject.model, norm) for norm in norms)
    return _with_part(draft, norms=compact(rows))


def _with_part(draft: Draft, **options: Any) -> Draft:
    used = {name: value for name, value in options.items() if value}
    if used:
        draft.parts = (PART,)
        draft.config["tricksmith"] = {PART: used}
    return draft


def _owners(model: nn.Module) -> dict[str, int]:
    """Parameter name -> how many modules have it."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return {name: counts[id(parameter)] for name, parameter in model.named_parameters()}


def _identity_by_default(model: nn.Module, norm: Norm) -> bool:
    """Whether transformers gives the norm an identity gain where a checkpoint has none."""
    parents = [model.get_submodule(path) for path in _prefixes(norm.module)]
    owner: Any = [module for module in parents if isinstance(module, PreTrainedModel)][-1]
    stock = model.get_submodule(norm.module)
    replica = copy.copy(stock)
    fresh = {
        name: nn.Parameter(torch.full(p.shape, 0.5)) for name, p in stock.named_parameters(recurse=False)
    }
    replica.__dict__["_parameters"] = fresh
    with torch.no_grad():
        owner._init_weights(replica)
    gain = fresh[norm.gain.rpartition(".")[2]]
    bias = fresh[norm.bias.rpartition(".")[2]] if norm.bias else torch.zeros(1)
    return bool((gain == 1.0 - norm.offset).all() and (bias == 0).all())


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]
