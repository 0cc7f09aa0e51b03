"""Every pair of tricks in one recipe: proved as a whole, or one of the two left out with the reason."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tricks.small_models import save_model
from tests.tricks.test_precompute import answers
from tests.tricks.test_skipless import skipless
from tricks import TRICKS, convert, make_plan, parse_trick, read_checkpoint

RECIPES = {"approximate": "approximate:window=32,degree=2,kl=1"}
# Pairs of which the second, in the order of carrying out, fits nowhere; and words of the reason.
EXCLUSIVE = {
    ("slim", "matshrink"): "slim",
    ("slim", "approximate"): "cache of its own",
}


def test_the_order_is_the_documented_one() -> None:
    assert list(TRICKS) == ["skipless", "precompute", "flashnorm", "slim", "matshrink", "approximate"]


@pytest.mark.parametrize(
    "pair", [pair for pair in combinations(TRICKS, 2) if "skipless" not in pair], ids="+".join
)
def test_pairs_on_a_llama_with_a_head_each(pair: tuple[str, str], tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", num_key_value_heads=4, num_hidden_layers=2)
    plan = make_plan(read_checkpoint(source), [parse_trick(RECIPES.get(name, name)) for name in pair])
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    fitting = {place.trick for place in plan.places if place.fits}
    if pair in EXCLUSIVE:
        reasons = [place.detail for place in plan.places if place.trick == pair[1]]
        assert fitting == {pair[0]}
        assert all(EXCLUSIVE[pair] in reason or "position" in reason for reason in reasons)
    else:
        assert fitting == set(pair)
    convert(plan, source, tmp_path / "out")
    a, b = answers(source), answers(tmp_path / "out")
    assert (a - b).abs().max() <= 1e-9 * a.abs().max()


# Why a trick fits nowhere beside skipless, whose own class has no norms and attends in its own way.
BESIDE_SKIPLESS = {
    "flashnorm": "",
    "slim": "turns its keys by position in its own way",
    "matshrink": "no attention block with an output projection",
    "approximate": "does not let its attention be exchanged",
}


@pytest.mark.parametrize("other", BESIDE_SKIPLESS)
def test_what_makes_no_sense_beside_skipless_says_why(other: str, tmp_path: Path) -> None:
    source = skipless(tmp_path / "source", num_key_value_heads=4, num_hidden_layers=2)
    recipe = [parse_trick("skipless"), parse_trick(RECIPES.get(other, other))]
    plan = make_plan(read_checkpoint(source), recipe)
    assert {place.trick for place in plan.places if place.fits} == {"skipless"}
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    assert all(BESIDE_SKIPLESS[other] in place.detail for place in plan.places if place.trick == other)


@pytest.mark.parametrize(
    ("fields", "absorbed"),
    [
        ({"bias": True, "tie_word_embeddings": True}, "q"),
        ({"num_experts": 4}, "q"),
        ({"parallel": True, "num_key_value_heads": 4}, "v"),
    ],
)
def test_what_skipless_leaves_is_looked_up(fields: dict[str, Any], absorbed: str, tmp_path: Path) -> None:
    """The first layer's input is its queries by then; what is left of its projections joins the table."""
    source = skipless(tmp_path / "source", num_hidden_layers=2, **fields)
    plan = make_plan(
        read_checkpoint(source), [parse_trick("precompute"), parse_trick(f"skipless:absorb={absorbed}")]
    )
    looked_up = {place.where for place in plan.places if place.trick == "precompute" and place.fits}
    assert f"layers.0.attention.{absorbed}_proj" not in looked_up
    assert len([path for path in looked_up if ".attention." in path]) == 2
    done = convert(plan, source, tmp_path / "out")
    assert done.conditions["absorb.undo"] > 1
    a, b = answers(source), answers(tmp_path / "out")
    assert (a - b).abs().max() <= 1e-9 * a.abs().max()


def test_four_tricks_in_one_recipe(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", num_key_value_heads=4, num_hidden_layers=3)
    names = ("matshrink", "precompute", "slim", "flashnorm")
    plan = make_plan(read_checkpoint(source), [parse_trick(name) for name in names])
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    fitting = {place.trick for place in plan.places if place.fits}
    assert fitting == {"flashnorm", "slim", "precompute"}
    left = [place.detail for place in plan.places if place.trick == "matshrink" and "v_proj" in place.detail]
    assert [text.split()[0] for text in left] == ["precompute", "slim", "slim"]
    convert(plan, source, tmp_path / "out")
    a, b = answers(source), answers(tmp_path / "out")
    assert (a - b).abs().max() <= 1e-9 * a.abs().max()


def test_precompute_flashnorm_matshrink_where_keys_are_free(tmp_path: Path) -> None:
    fields = {"n_embd": 48, "n_head": 4, "n_layer": 3, "rotary_dim": 4, "tie_word_embeddings": False}
    source = save_model(tmp_path / "source", "gptj", **fields)
    plan = make_plan(
        read_checkpoint(source), [parse_trick(name) for name in ("precompute", "flashnorm", "matshrink")]
    )
    assert {place.trick for place in plan.places if place.fits} == {"precompute", "flashnorm", "matshrink"}
    convert(plan, source, tmp_path / "out")
    a, b = answers(source), answers(tmp_path / "out")
    assert (a - b).abs().max() <= 1e-11 * a.abs().max()
    assert torch.isfinite(b).all()
