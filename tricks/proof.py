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
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tricks.checkpoint import read_checkpoint
from tricks.convert import convert
from tricks.draft import draft_plan
from tricks.errors import BadInput, TricksmithError
from tricks.float64 import float64_arithmetic
from tricks.model import build, first_line, read_config, spread_experts
from tricks.plan import Plan
from tricks.quiet import quiet
from tricks.small import affordable, randomise, shrunk_configs

LIMIT = 1e-9
"""Largest allowed relative difference of the logits in float64."""


def prove(plan: Plan, config: dict[str, Any]) -> Plan:
    """`plan` with its proof.

    Raises:
        BadInput: the small model's logits moved, or no small model that shows all of the plan's places
            could be built and run.
    """
    full = read_config(config, plan.model)
    problem = "no small model of this class could be built"
    for small in shrunk_configs(full):
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


def _kinds(plan: Plan) -> set[tuple[str, bool, str]]:
    """The kinds of places of a plan: paths and details without their numbers."""

    def plain(text: str) -> str:
        return re.sub(r"\d+", "*", text)

    return {(plain(p.where), p.fits, plain(p.detail) if p.fits else "") for p in plan.places}


def _try(plan: Plan, config: PretrainedConfig) -> tuple[float, bool]:
    if not affordable(build(config, "meta", torch.float32)):
        raise _TooLarge
    with tempfile.TemporaryDirectory(prefix="tricksmith-proof-") as folder, quiet():
        source, out = Path(folder, "source"), Path(folder, "converted")
        model: Any = build(config, "cpu", torch.float64)
        randomise(model)
        model.save_pretrained(source)
        del model
        small = draft_plan(read_checkpoint(source), plan.tricks)
        if not _kinds(plan) <= _kinds(small):
            return 0.0, False
        convert(small, source, out)
        before = _load(source)
        return max(_difference(before, _load(out, own_code)) for own_code in _ways(small)), True


def _ways(plan: Plan) -> list[bool]:
    """How a result is loaded: with the code that ships with it, with stock code, or either."""
    return [own_code for own_code in (True, False) if (plan.parts if own_code else plan.stock_loads)]


def _load(folder: Path, own_code: bool = False) -> nn.Module:
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", trust_remote_code=own_code
    )
    spread_experts(model)  # the default, grouped products, knows no float64
    result: nn.Module = model.double().eval()
    return result


def _difference(source: nn.Module, converted: nn.Module) -> float:
    """Largest difference of the logits over the largest logit; infinite where either is not finite."""
    vocabulary = source.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), float64_arithmetic():
        a, b = (model(input_ids=ids, use_cache=False).logits for model in (source, converted))
    error = ((a - b).abs().max() / a.abs().max()).item()
    return error if torch.isfinite(a).all() and torch.isfinite(b).all() else float("inf")
