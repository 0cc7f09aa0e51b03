"""Attention of constant memory: exact within its window, the polynomial beyond it, the same cached or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import polynomial
from transformers import AutoTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from models.evaluate import HELDOUT
from tests.tricks.small_models import save_model
from tests.tricks.test_precompute import load
from tricks import BadInput, Plan, approximate_settle, convert, make_plan, parse_trick, read_checkpoint
from tricks.approximate_settle import TAILS, observed
from tricks.float64 import float64_arithmetic
from tricks.polynomials import chebyshev_fit, coefficients, minimax, state_size, taylor
from tricks.recipe import stated_budget
from tricks.shipped.modeling_approximate import StateLayer, attend


def planned(source: Path, text: str) -> Plan:
    return make_plan(read_checkpoint(source), [parse_trick(text)])


def converted(source: Path, text: str) -> Any:
    out = source.parent / "out"
    plan = planned(source, text)
    assert plan.fits, plan.places
    convert(plan, source, out)
    return load(out)


class Block:
    """What an attention function is told about its module."""

    def __init__(self, **options: Any) -> None:
        self.tricksmith_approximate = {
            "window": 4,
            "sinks": 1,
            "parts": 1,
            "coefficients": taylor(2),
            **options,
        }


def random_heads(tokens: int, heads: int, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(heads * 100 + tokens)
    return torch.randn(2, heads, tokens, size, generator=generator, dtype=torch.float64)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The definition, score by score."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    tokens = q.shape[2]
    weights = torch.zeros(*q.shape[:3], tokens, dtype=torch.float64)
    for i in range(tokens):
        for j in range(i + 1):
            x = (q[:, :, i] * k[:, :, j]) * q.shape[-1] ** -0.5
            if j > i - options["window"] or j < options["sinks"]:
                weights[..., i, j] = x.sum(-1).exp()
            elif options["coefficients"]:
                split = x.view(*x.shape[:-1], options["parts"], -1).sum(-1)
                weights[..., i, j] = sum(c * split**n for n, c in enumerate(options["coefficients"])).prod(-1)
    return ((weights @ v) / weights.sum(-1, keepdim=True)).transpose(1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parts": 2, "coefficients": taylor(2)},
        {"parts": 3, "coefficients": taylor(4)},
        {"coefficients": []},
        {"sinks": 0, "window": 3},
        {"sinks": 3, "window": 3, "coefficients": minimax(4, -3, 3)},
    ],
)
def test_the_state_gives_what_the_definition_says(options: dict[str, Any]) -> None:
    block = Block(**options)
    q, k, v = random_heads(13, 4), random_heads(13, 2), random_heads(13, 2) + 1
    q = q / 2  # even-degree polynomials stay positive anyhow, odd ones here
    expected = by_hand(q, k, v, block.tricksmith_approximate)
    whole = attend(block, q, k, v, None)[0]
    assert torch.allclose(whole, expected, atol=1e-10)
    layer, parts = StateLayer(block.tricksmith_approximate), []
    for first, last in ((0, 5), (5, 6), (6, 11), (11, 13)):
        keys, values = layer.update(k[:, :, first:last], v[:, :, first:last])
        parts.append(attend(block, q[:, :, first:last], keys, values, None)[0])
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-10)
    assert (
        layer.keys.shape[2] <= block.tricksmith_approximate["window"] + block.tricksmith_approximate["sinks"]
    )


def test_logits_of_any_size_do_not_overflow() -> None:
    block = Block(coefficients=taylor(1))
    for size in (1e-3, 1.0, 60.0):
        q, k = (size * random_heads(20, 2).float() for _ in range(2))
        found = attend(block, q, k, random_heads(20, 2).float(), None)[0]
        assert torch.isfinite(found).all()


def test_within_the_window_nothing_is_approximate(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "qwen3")
    plan = planned(source, "approximate:window=64,kl=0.1")
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    assert not plan.lossless
    assert plan.stock_loads


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox"])
def test_cached_steps_give_what_one_pass_gives(model_type: str, tmp_path: Path) -> None:
    heads = {"num_key_value_heads": 4} if model_type == "gpt_neox" else {}
    model = converted(
        save_model(tmp_path / "source", model_type, **heads), "approximate:window=16,degree=2,kl=9"
    )
    ids = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), float64_arithmetic():
        whole = model(input_ids=ids, use_cache=False).logits
        cache, parts = None, []
        for first, last in ((0, 21), (21, 22), (22, 40)):
            step = model(input_ids=ids[:, first:last], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-9)
    assert cache.layers[0].keys.shape[2] <= 16 + 4
    held = cache.layers[0].state.shape
    assert held[-2:] == (math.comb(12 + 2, 2), 13)


def test_a_padded_batch_says_what_each_text_says_alone(tmp_path: Path) -> None:
    model = converted(save_model(tmp_path / "source", "llama"), "approximate:window=16,sinks=0,degree=2,kl=9")
    ids = torch.randint(3, 90, (1, 30), generator=torch.Generator().manual_seed(4))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(35) >= 5).long().unsqueeze(0)
    places = (torch.arange(35) - 5).clamp_min(0).unsqueeze(0)
    with torch.no_grad(), float64_arithmetic():
        alone = model(input_ids=ids, use_cache=False).logits
        both = model(input_ids=padded, attention_mask=mask, position_ids=places, use_cache=False).logits
    assert torch.allclose(both[:, 5:], alone, atol=1e-9)


def test_generate_keeps_a_cache_of_constant_size(tmp_path: Path) -> None:
    model = converted(save_model(tmp_path / "source", "llama"), "approximate:window=16,poly=none,kl=9")
    done = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=40, do_sample=False, return_dict_in_generate=True
    )
    assert {layer.keys.shape[2] for layer in done.past_key_values.layers} == {15 + 4}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("approximate", "no budget is stated"),
        ("approximate:window=16,sinks=17,kl=1", "smaller than the 17 sinks"),
        ("approximate:parts=5,kl=1", "5 parts do not divide a head of 12 channels"),
        ("approximate:low=3,high=1,kl=1", "low must lie below high"),
        ("approximate:degree=4,parts=4,kl=1", "sums per head"),
    ],
)
def test_what_makes_no_sense_is_one_reason(text: str, reason: str, tmp_path: Path) -> None:
    plan = planned(save_model(tmp_path / "source", "llama"), text)
    assert not plan.fits
    assert reason in plan.places[0].detail


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 12}, "softcap|sliding_window"),
        ("mamba", {"state_size": 4}, "attention"),
        ("mistral", {"sliding_window": 4}, "sliding_window"),
    ],
)
def test_other_attentions_are_left_with_a_reason(
    model_type: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    plan = planned(save_model(tmp_path / "source", model_type, **fields), "approximate:kl=1")
    assert not plan.fits
    assert any(word in plan.places[0].detail for word in reason.split("|"))


def test_polynomials_are_what_they_are_called() -> None:
    grid = np.linspace(-3, 2, 2001)
    for degree in (1, 2, 3, 4):
        errors = [
            np.abs(np.exp(grid) - polynomial.polyval(grid, fit(degree, -3, 2))).max()
            for fit in (minimax, chebyshev_fit)
        ]
        assert errors[0] <= errors[1] * (1 + 1e-6)
        # Equal extremes: no polynomial of this degree is closer anywhere.
        assert errors[0] > 0.5 * errors[1]
    assert taylor(3) == [1, 1, 1 / 2, 1 / 6]
    assert len(coefficients("minimax", 2, -4, 4, parts=2)) == 3


TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


def test_the_polynomial_is_fitted_to_what_each_layer_was_seen_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is closer to the source for it than one on the draft's range."""
    monkeypatch.setattr(approximate_settle, "_TOKENS", 1024)
    ids = torch.tensor(AutoTokenizer.from_pretrained(TINY)(HELDOUT.read_text())["input_ids"][:256])[None]
    source = load(TINY, torch.float32)(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    divergence = {}
    for name, stated in (("observed", ""), ("stated", ",low=-2,high=2")):
        plan = planned(TINY, f"approximate:window=32,poly=chebyshev,degree=2,kl=9{stated}")
        done = convert(plan, TINY, tmp_path / name)
        found = load(tmp_path / name, torch.float32)(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        divergence[name] = (source.exp() * (source - found)).sum(-1).mean().item()
        options = json.loads((tmp_path / name / "config.json").read_text())["tricksmith"]["approximate"]
        if name == "stated":
            assert done.settled is None
            assert "layers" not in options
            continue
        assert done.settled is not None
        assert all("fitted to dot products from" in place["detail"] for place in done.settled["places"])
        assert len({tuple(fit) for fit in options["layers"].values()}) == 6
    assert divergence["observed"] < divergence["stated"] / 2


def test_the_observed_range_is_that_of_the_dot_products_themselves() -> None:
    """One layer by hand: the keys that have left window and sinks, at the queries that are looked at."""
    model = load(TINY, torch.float32)
    rows = torch.randint(3, 2000, (1, 48), generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    attention = model.model.layers[0].self_attn
    for name in ("q_proj", "k_proj"):
        attention.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out})
        )
    low, high = observed(model, rows, window=8, sinks=4)["model.layers.0.self_attn"]
    positions = model.model.rotary_emb(seen["q_proj"], torch.arange(48)[None])
    q, k = (seen[name].view(1, 48, -1, attention.head_dim).transpose(1, 2) for name in ("q_proj", "k_proj"))
    q, k = apply_rotary_pos_emb(q, k, *positions)
    x = (q @ k.transpose(-1, -2))[0] * attention.scaling
    i, j = torch.arange(48)[:, None], torch.arange(48)[None]
    old = x[:, (i >= 12) & (j <= i - 8) & (j >= 4)]
    # All 36 queries are looked at, some of them twice.
    assert low == pytest.approx(old.quantile(TAILS).item(), abs=0.5)
    assert high == pytest.approx(old.quantile(1 - TAILS).item(), abs=0.5)


@pytest.mark.parametrize(
    ("source", "window", "reason"),
    [("random", 32, "no tokenizer"), ("trained", 600, "choose a smaller window")],
)
def test_what_cannot_be_observed_is_one_line(source: str, window: int, reason: str, tmp_path: Path) -> None:
    folder = TINY if source == "trained" else save_model(tmp_path / "source", "llama")
    plan = planned(folder, f"approximate:window={window},poly=minimax,kl=9")
    with pytest.raises(BadInput, match=reason) as error:
        convert(plan, folder, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_sizes_are_the_drafts() -> None:
    assert [state_size(64, n, 1) for n in (1, 2, 3)] == [65, 2145, 47905]
    assert [state_size(128, n, 2) for n in (1,)] == [4225]
    assert state_size(64, 1, 4) == 83521


def test_the_budget_is_read_from_the_recipe() -> None:
    assert stated_budget([parse_trick("approximate:kl=0.05,perplexity=0.02"), parse_trick("flashnorm")]) == {
        "kl": 0.05,
        "perplexity": 0.02,
    }
