"""A plan proves itself before any byte of the real model moves.

A small random model of the same class is saved in its checkpoint format, planned and converted by the very
code that will convert the real one, and loaded again with stock transformers. In float64 throughout, source
and result must agree to 1e-9 relative. The small plan must show every kind of place that the full plan has,
so that nothing in the full plan is left unproven.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tricks.checkpoint import read_checkpoint
from tricks.converting import convert
from tricks.draft import draft_plan
from tricks.errors import BadInput, TricksmithError
from tricks.families import architecture, auto_class
from tricks.float64 import float64_arithmetic
from tricks.inputs import sample_inputs
from tricks.model import Blueprint, build, first_line, read_config, spread_experts
from tricks.plan import Plan
from tricks.quiet import quiet
from tricks.small import affordable, randomise, shrunk
from tricks.turns import one_at_a_time

LIMIT = 1e-9
"""Largest allowed relative difference of the logits in float64."""


@one_at_a_time
def prove(plan: Plan, config: dict[str, Any]) -> Plan:
    """`plan` with its proof.

    Raises:
        BadInput: the small model's outputs moved, or no small model that shows all of the plan's places
            could be built and run.
    """
    full = read_config(config, plan.model)
    problem = "no small model of this class could be built"
    for small in shrunk(full):
        try:
            error, covered = _try(plan, small)
        except _TooLarge:
            continue
        except TricksmithError as trouble:
            problem = str(trouble)
            continue
        except Exception as trouble:  # noqa: BLE001 - modelling code can fail in any way at an odd size
            problem = first_line(trouble)
            continue
        if not covered:
            problem = "a smaller model does not show every kind of place that this one has"
            continue
        if not error <= LIMIT:
            raise BadInput(
                f"{plan.architecture}: the plan failed its own proof (logits moved by {error:.1e} relative "
                f"in float64, {LIMIT:.0e} is allowed), so it was refused; report this architecture"
            )
        return replace(plan, proof=error)
    raise BadInput(f"{plan.architecture}: the plan could not be proven ({problem}), so it was refused")


class _TooLarge(Exception):
    """A shrunk config that is still too large to fill."""


def _kinds(plan: Plan) -> set[tuple[str, str]]:
    """The kinds of places that a plan changes: paths and details without their numbers."""

    def plain(text: str) -> str:
        each = re.sub(r"\d+", "*", text).split(", ")
        return ", ".join(dict.fromkeys(each))  # a norm that all layers read names as many as there are

    return {(plain(place.where), plain(place.detail)) for place in plan.places if place.fits}


def _try(plan: Plan, blueprint: Blueprint) -> tuple[float, bool]:
    if not affordable(build(blueprint, "meta", torch.float32)):
        raise _TooLarge
    with tempfile.TemporaryDirectory(prefix="tricksmith-proof-") as folder, quiet():
        source, out = Path(folder, "source"), Path(folder, "converted")
        model: Any = build(blueprint, "cpu", torch.float64)
        model.double()  # some weights are made in float32 whatever is asked for
        randomise(model)
        model.save_pretrained(source)
        del model
        small = draft_plan(read_checkpoint(source), plan.tricks)
        if not _kinds(plan) <= _kinds(small):
            return 0.0, False
        before = _load(plan, source)
        cached = "slim" in small.parts
        error = 0.0
        for number, way in enumerate(_outcomes(small)):
            done = Path(out, str(number))
            convert(way, source, done, settling=False)
            errors = [difference(before, _load(plan, done, own), cached) for own in _ways(way)]
            error = max(error, *errors)
        if not error <= LIMIT and (lost := _lost(plan, source)):
            raise TricksmithError(
                f"transformers does not read {lost} back from what it saves itself as "
                f"{blueprint.config.model_type}"
            )
        return error, True


def _outcomes(plan: Plan) -> list[Plan]:
    """The plan, and what calibration may make of it: slim attention that caches values."""
    if not any(trick.name == "slim" for trick in plan.tricks):
        return [plan]
    from tricks.slim_settle import by_values  # late: it needs tokenizers, which no other trick does

    other = by_values(plan)
    return [plan] if other is None else [plan, other]


def _lost(plan: Plan, source: Path) -> str | None:
    """A weight that the stock class does not find in a checkpoint that it saved."""
    _, told = architecture(plan.architecture).from_pretrained(source, output_loading_info=True)
    return min(told["missing_keys"], default=None)


def _ways(plan: Plan) -> list[bool]:
    """How a result is loaded: with the code that ships with it, with stock code, or either."""
    return [own_code for own_code in (True, False) if (plan.parts if own_code else plan.stock_loads)]


def _load(plan: Plan, folder: Path, own_code: bool = False) -> nn.Module:
    stock = architecture(plan.architecture)
    loader: Any = getattr(transformers, auto_class(plan.architecture)) if own_code else stock
    with float64_arithmetic():  # some weights are made in float32, whatever dtype is asked for
        model: Any = loader.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", trust_remote_code=own_code
        )
    result: nn.Module = model.double().eval()
    return result


def difference(source: nn.Module, converted: nn.Module, cached: bool = False) -> float:
    """Largest relative difference between two models' outputs on the same random inputs, in float64.

    With `cached` the outputs are those of decoding through the models' caches as well.

    Each output (logits, hidden states) is compared with its own largest value; infinite where a value is not
    finite.
    """
    worst = 0.0
    before, after = outputs(source, cached), outputs(converted, cached)
    assert before
    assert before.keys() == after.keys()
    for name, a in before.items():
        error = ((a - after[name]).abs().max() / a.abs().max()).item()
        worst = max(worst, error if torch.isfinite(a).all() and error == error else float("inf"))
    return worst


def outputs(model: nn.Module, cached: bool = False) -> dict[str, torch.Tensor]:
    """The float tensors that `model` returns on sample inputs, in float64; with `cached` also its decoding.

    Raises:
        TricksmithError: it can be run on none of them.
    """
    problem = "it takes no text"
    spread_experts(model)  # the default, grouped products, knows no float64
    for inputs in sample_inputs(model, seed=1):
        try:
            with torch.no_grad(), float64_arithmetic():
                result = model(**inputs)
                steps = {"decoded": decoded(model, inputs)} if cached else {}
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
            problem = first_line(error)
            continue
        return {
            name: value
            for name, value in {**result, **steps}.items()
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and not name.startswith("encoder_")
        }
    raise TricksmithError(f"{type(model).__name__} cannot be run: {problem}")


def decoded(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits [B, T, vocabulary] of inputs read through a cache: two tokens, two more, then one by one."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    ids, cache, logits = inputs[name], None, []
    for piece in (ids[:, :2], ids[:, 2:4], *ids[:, 4:].split(1, 1)):
        result = model(**{**inputs, name: piece, "past_key_values": cache, "use_cache": True})
        cache = result.past_key_values
        logits.append(result.logits)
    return torch.cat(logits, 1)
