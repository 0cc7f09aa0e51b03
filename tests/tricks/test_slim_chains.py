"""Slim attention after other tricks, on trained weights: what they round anew must not be amplified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tricks.test_slim import FOLDERS, decoded, divergence, load, text
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("llama", "flashnorm slim precompute"),
        ("llama", "flashnorm:form=strict slim"),
        ("gptneox", "slim flashnorm"),
    ],
)
def test_a_chain_decodes_below_the_models_own_noise(name: str, recipe: str, tmp_path: Path) -> None:
    """The keys' projection is rounded anew once gains are in it, and it is that one that A must undo."""
    source, out = FOLDERS[name], tmp_path / "out"
    tricks = [parse_trick(trick) for trick in recipe.split()]
    done = convert(make_plan(read_checkpoint(source), tricks), source, out)
    assert done.settled is not None
    assert {place.trick for place in Plan.from_json(done.settled).places if place.fits} == {
        trick.name for trick in tricks
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    ids = text(name, 110)
    exact, _ = decoded(load(name, source), name, ids)
    rounded, _ = decoded(load(name, source, torch.bfloat16), name, ids)
    found, _ = decoded(load(name, out), name, ids)
    assert divergence(exact, found) < divergence(exact, rounded)


def test_a_chain_in_float32_feels_no_rounding(tmp_path: Path) -> None:
    """There nothing is fitted: the exact form undoes the keys' projection as it is stored."""
    load("llama", FOLDERS["llama"]).save_pretrained(tmp_path / "wide")
    tricks = [parse_trick("flashnorm"), parse_trick("slim:residual=0")]
    convert(make_plan(read_checkpoint(tmp_path / "wide"), tricks), tmp_path / "wide", tmp_path / "out")
    ids = text("llama", 60)
    exact, _ = decoded(load("llama", FOLDERS["llama"]), "llama", ids)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True)
    found, _ = decoded(wide.eval(), "llama", ids)
    assert divergence(exact, found) < 1e-6
