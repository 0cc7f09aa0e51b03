"""Every pair of tricks in one recipe: proved as a whole, or one of the two left out with the reason."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

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


@pytest.mark.parametrize("other", [name for name in TRICKS if name != "skipless"])
def test_pairs_with_skipless(other: str, tmp_path: Path) -> None:
    """Its own class has no norms and no exchangeable attention, and its blocks are taken."""
    source = skipless(tmp_path / "source", num_key_value_heads=4, num_hidden_layers=2)
    recipe = [parse_trick("skipless"), parse_trick(RECIPES.get(other, other))]
    plan = make_plan(read_checkpoint(source), recipe)
    assert {place.trick for place in plan.places if place.fits} == {"skipless"}
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    assert all(place.detail for place in plan.places)


def test_four_tricks_in_one_recipe(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", num_key_value_heads=4, num_hidden_layers=3)
    names = ("matshrink", "precompute", "slim", "flashnorm")
    plan = make_plan(read_checkpoint(source), [parse_trick(name) for name in names])
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    fitting = {place.trick for place in plan.places if place.fits}
    assert {"flashnorm", "slim", "precompute"} <= fitting
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
