"""Slim attention settled by activations: what is cached in each layer, and how wide its residual is.

The source runs on the calibration text (see `slim_observe`); what each width would cost is counted in nats,
and the layers share one budget (see `slim_fit`): `target` times the source's own divergence in the cache's
dtype.
Where keys are not turned by position, caching V is weighed against caching K.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tricks.converting import convert
from tricks.edits import Drop, Edit, Make
from tricks.families import architecture, auto_class
from tricks.place import Place
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.quiet import quiet
from tricks.recipe import Trick
from tricks.slim import NAME, describe, edits_of, layer_bytes, mirrored, rank_step, table_bytes
from tricks.slim_algebra import OPERATION, condition
from tricks.slim_fit import Choice, Fitted, Sums, fit, share_out
from tricks.slim_observe import Watched, fisher, observe, own_noise, watch

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""The cache's dtypes that need fitting."""
_WIDTH = 2
"""Bytes of a number in them."""


@dataclass(frozen=True)
class _Way:
    """One width of one way to cache a layer."""

    watched: Watched
    fitted: Fitted
    rank: int


@dataclass(frozen=True)
class Seen:
    """What `look` found: for each planned layer the ways to cache it, and the source's own divergence in the
    cache's dtype, in nats a token."""

    layers: list[list[Watched]]
    noise: float


def settle(plan: Plan, source: Path, folder: Path, report: Report = silent) -> Plan:
    """`plan` with what slim attention chooses by activations; matrices go to a file in `folder`.

    A plan without such choices, or of weights in 32 bits or more (whose rounding the exact form of the plan
    does not feel), comes back as it is.

    Raises:
        BadInput: no tokenizer, too short a calibration text, or weights that are not finite.
    """
    specs = _chosen(plan)
    if not specs or not all(spec["integers"] for spec in specs):
        return plan
    trick = next(trick for trick in plan.tricks if trick.name == NAME)
    others = _without_slim(plan)
    if not others.edits:
        return decide(plan, look(plan, source, trick, report), trick, folder)
    # A undoes the keys' projection as it is stored: one that another trick has changed was rounded anew, and
    # A would amplify the difference a thousandfold.
    left = folder / "left"
    try:
        convert(others, source, left, settling=False)
        seen = look(plan, left, trick, report, own_code=bool(others.parts))
    finally:
        shutil.rmtree(left, ignore_errors=True)
    return decide(plan, seen, trick, folder)


def by_values(plan: Plan) -> Plan | None:
    """What `settle` may make of a plan: values cached wherever it may choose that; None: nowhere."""
    trick = next((trick for trick in plan.tricks if trick.name == NAME), None)
    if trick is None:
        return None
    makes, settled = _makes(plan), []
    for spec, make in zip(_chosen(plan), makes, strict=True):
        new = _ways(spec, trick)[-1]
        detail = next(p.detail for p in plan.places if p.trick == NAME and p.where == spec["module"])
        settled.append((new, Place(NAME, spec["module"], True, detail), _edits(new, make, None)))
    turned = any(new["mode"] == "v" for new, _, _ in settled) and trick.option("mode") == "auto"
    return _with(plan, makes, settled, []) if turned else None


def look(plan: Plan, source: Path, trick: Trick, report: Report = silent, own_code: bool = False) -> Seen:
    """Run the source, in float32 and in the cache's dtype, on the calibration text.

    Args:
        source: the plan's, or what the recipe's other tricks leave of it.
        own_code: whether that needs the modelling code which Tricksmith shipped with it.

    Raises:
        BadInput: as `settle`.
    """
    dtype = _DTYPES[_makes(plan)[0].options["dtype"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stock = architecture(plan.architecture)
    loader: Any = getattr(transformers, auto_class(plan.architecture)) if own_code else stock

    def load(dtype: torch.dtype) -> Any:
        with quiet():
            model: Any = loader.from_pretrained(
                source, dtype=dtype, attn_implementation="eager", trust_remote_code=own_code
            )
        return model.to(device).eval().requires_grad_(False)

    model = load(torch.float32)
    layers = []
    for spec in _chosen(plan):
        sums = Sums(), Sums()
        layers.append([watch(model, way, *sums) for way in _ways(spec, trick)])
    windows, exact = observe(model, layers, source, dtype, report)
    del model
    return Seen(layers, own_noise(load(dtype), windows, exact))


def decide(
    plan: Plan,
    seen: Seen,
    trick: Trick,
    folder: Path,
    weigh: Callable[[Watched], torch.Tensor | None] = fisher,
    feedback: bool = True,
) -> Plan:
    """`plan` with each layer's mode and residual; matrices go to a file in `folder`.

    Args:
        weigh: how errors of a layer's channels, cached and derived, count together
            [e_in + e_out, e_in + e_out]; None: those of derived ones alike.
        feedback: whether what is cached is rounded with error feedback.
    """
    specs, makes = _chosen(plan), _makes(plan)
    offered = [_choices(ways, trick, weigh, feedback) for ways in seen.layers]
    taken = share_out(offered, float(trick.option("target")) * seen.noise)
    settled: list[tuple[dict[str, Any], Place, list[Edit]]] = []
    gone: list[Place] = []
    tensors: dict[str, torch.Tensor] = {}
    file = folder / "slim.safetensors"
    for number, (spec, make, choice, ways) in enumerate(zip(specs, makes, taken, seen.layers, strict=True)):
        if choice.what is None:
            gone.append(_left(spec, ways))
            continue
        way = choice.what
        fitted = way.fitted
        if way.rank and feedback:  # the feedback is worked out anew for what this residual leaves
            fitted = fit(way.watched, weigh(way.watched), feedback, way.rank)
        tensors |= _matrices(replace(way, fitted=fitted), number)
        share = float(fitted.nats[way.rank]) / seen.noise if seen.noise > 0 else 0.0
        worst = condition(choice.what.watched.primary)
        new = {**choice.what.watched.spec, "residual": choice.what.rank, "feedback": feedback}
        new |= {"condition": float(f"{worst:.3g}"), "error": float(f"{share:.3g}")}
        detail = describe(new, _before(spec), choice.bytes)
        detail += f"; condition number {worst:.1e}, error {share:.3f} of the source's own rounding"
        edits = _edits(new, make, {"file": str(file), "layer": number})
        settled.append((new, Place(NAME, spec["module"], True, detail), edits))
    save_file(tensors, file)
    return _with(plan, makes, settled, gone)


def _chosen(plan: Plan) -> list[dict[str, Any]]:
    """The specifications of the layers that are settled."""
    specs = plan.config.get("tricksmith", {}).get(NAME, {}).get("layers", [])
    return [spec for spec in specs if spec["mode"] in "kv"]


def _without_slim(plan: Plan) -> Plan:
    """What the recipe's other tricks do."""
    dropped = {make.inputs["derived"] for make in _makes(plan)}
    edits = tuple(
        edit
        for edit in plan.edits
        if not (isinstance(edit, Make) and edit.operation == OPERATION)
        and not (isinstance(edit, Drop) and edit.tensor in dropped)
    )
    marks = {part: value for part, value in plan.config["tricksmith"].items() if part != NAME}
    config = {field: value for field, value in plan.config.items() if field != "tricksmith"}
    if marks:
        config["tricksmith"] = marks
    parts = tuple(part for part in plan.parts if part != NAME)
    tricks = tuple(trick for trick in plan.tricks if trick.name != NAME)
    return replace(plan, tricks=tricks, edits=edits, config=config, parts=parts)


def _makes(plan: Plan) -> list[Make]:
    return [edit for edit in plan.edits if isinstance(edit, Make) and edit.operation == OPERATION]


def _ways(spec: dict[str, Any], trick: Trick) -> list[dict[str, Any]]:
    """The ways to cache a layer that are weighed against each other."""
    if trick.option("mode") != "auto" or not spec["absorbs"]:
        return [spec]
    return [spec, mirrored(spec)]


def _before(spec: dict[str, Any]) -> int:
    return _WIDTH * (int(spec["shape"][0]) + int(spec["shape"][1]))


def _choices(
    ways: Sequence[Watched],
    trick: Trick,
    weigh: Callable[[Watched], torch.Tensor | None],
    feedback: bool,
) -> list[Choice]:
    """Every width of every way that saves bytes; and, where the width is free, the standard cache."""
    asked = trick.option("residual")
    choices = [Choice(_before(ways[0].spec), 0.0)] if asked == "auto" else []
    for watched in ways:
        fitted = fit(watched, weigh(watched), feedback)
        spec = watched.spec
        most = len(fitted.nats) - 1
        ranks = range(spec["least"], most, rank_step(spec["shape"][2])) if asked == "auto" else [int(asked)]
        for rank in ranks:
            size = layer_bytes({**spec, "residual": rank}, _WIDTH)
            if rank <= most and size < _before(spec):
                choices.append(Choice(size, float(fitted.nats[rank]), _Way(watched, fitted, rank)))
    return choices or [Choice(_before(ways[0].spec), 0.0)]


def _left(spec: dict[str, Any], ways: Sequence[Watched]) -> Place:
    numbers = " and ".join(f"{condition(watched.primary):.1e}" for watched in ways)
    reason = f"no residual that saves anything is wide enough (condition number {numbers}): it stays standard"
    return Place(NAME, spec["module"], False, reason)


def _matrices(way: _Way, number: int) -> dict[str, torch.Tensor]:
    """What `slim_algebra.derive` reads: A, R, L, and the scales of an 8-bit cache."""
    fitted, rank = way.fitted, way.rank
    made = {"A": fitted.matrix, "R": fitted.right[:, :rank], "L": fitted.left[:rank]}
    if fitted.order is not None and fitted.weights is not None:
        made |= {"order": fitted.order, "W": fitted.weights}
    if way.watched.scales is not None:
        made["scales"] = way.watched.scales
    return {f"{number}.{name}": tensor.cpu().contiguous() for name, tensor in made.items()}


def _edits(spec: dict[str, Any], make: Make, settled: dict[str, Any] | None) -> list[Edit]:
    """The edits of a layer in the place of those that `make` began; `settled`: where its matrices are."""
    names = make.inputs
    if spec["cached"] != make.options["cached"]:
        names = {"primary": names["derived"], "derived": names["primary"]}
    shape = make.outputs["rest"].shape if "rest" in make.outputs else ()
    straight = not make.options["transposed"]
    if shape:
        grown = list(shape)
        grown[0 if straight else 1] += make.outputs["values"].shape[0]
        shape = tuple(grown)
    return edits_of(spec, names["primary"], names["derived"], make.options["dtype"], shape, straight, settled)


def _with(
    plan: Plan,
    makes: Sequence[Make],
    settled: Sequence[tuple[dict[str, Any], Place, list[Edit]]],
    gone: Sequence[Place],
) -> Plan:
    """The plan with settled layers in the place of planned ones."""
    specs: list[dict[str, Any]] = plan.config["tricksmith"][NAME]["layers"]
    ours = {make.inputs["derived"] for make in makes}
    anew = {spec["module"]: edits for spec, _, edits in settled}
    edits: list[Edit] = []
    for edit in plan.edits:
        if isinstance(edit, Make) and edit.operation == OPERATION:
            edits += anew.get(edit.options["module"], [])
        elif not (isinstance(edit, Drop) and edit.tensor in ours):
            edits.append(edit)
    by_module = {spec["module"]: spec for spec, _, _ in settled}
    kept = [by_module.get(spec["module"], spec) for spec in specs]
    lost = {place.where for place in gone}
    kept = [spec for spec in kept if spec["module"] not in lost]

    def size(layers: Sequence[dict[str, Any]]) -> int:
        own = [spec for spec in layers if spec["mode"] in "kv"]
        return sum(layer_bytes(spec, _WIDTH) for spec in own) + table_bytes(list(layers), _WIDTH)

    change = size(kept) - size(specs) + sum(_before(spec) for spec in specs if spec["module"] in lost)
    savings = dict(plan.savings)
    savings["cache_bytes_per_token_after"] += change
    savings["slim_layers"] = len(kept)
    places = {place.where: place for place in [*gone, *(place for _, place, _ in settled)]}
    return replace(
        plan,
        edits=tuple(edits),
        config={**plan.config, "tricksmith": {**plan.config["tricksmith"], NAME: {"layers": kept}}},
        savings=savings,
        places=tuple(places.get(p.where, p) if p.trick == NAME else p for p in plan.places),
    )
