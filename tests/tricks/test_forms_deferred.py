"""FlashNorm's forms defer and cancel: the norm's scale behind the linear layers, or gone with an exact ε."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.tricks.small_models import save_model
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.float64 import float64_arithmetic
from tricks.model import spread_experts
from tricks.shipped.modeling_flashnorm import install

MLA: dict[str, Any] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "head_dim": 4,
}
GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 4,
    "global_head_dim": 12,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 99,
    "num_kv_shared_layers": 2,
    "num_global_key_value_heads": 2,
}


def plan_of(folder: Path, form: str, model_type: str, **fields: Any) -> tuple[Path, Plan]:
    source = save_model(folder / "source", model_type, **fields)
    return source, make_plan(read_checkpoint(source), [parse_trick(f"flashnorm:form={form}")])


def own_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", trust_remote_code=True
    )
    spread_experts(model)
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), float64_arithmetic():
        return model.double().eval()(input_ids=ids, use_cache=False).logits


def moved(folder: Path) -> float:
    before, after = own_logits(folder / "source"), own_logits(folder / "out")
    return ((before - after).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("gemma", {}),
        ("mamba", {"state_size": 4}),
    ],
)
def test_a_deferred_scale_is_exact(model_type: str, fields: dict[str, Any], tmp_path: Path) -> None:
    source, plan = plan_of(tmp_path, "defer", model_type, **fields)
    assert plan.stock_loads
    convert(plan, source, tmp_path / "out")
    assert moved(tmp_path) <= 1e-9


def test_a_final_norm_whose_output_is_returned_is_not_deferred(tmp_path: Path) -> None:
    _, plan = plan_of(tmp_path, "defer", "llama", tie_word_embeddings=True)
    details = {place.where: place.detail for place in plan.places}
    assert "the model returns its output" in details["model.norm"]
    assert "applied after the product" in details["model.layers.0.input_layernorm"]


def test_what_centres_or_feeds_experts_is_not_deferred(tmp_path: Path) -> None:
    _, plan = plan_of(tmp_path, "defer", "gpt2", n_embd=48, n_head=4, n_layer=2)
    assert not plan.fits
    assert "takes the mean off" in plan.places[0].detail
    _, plan = plan_of(tmp_path / "moe", "defer", "mixtral", num_local_experts=4)
    details = {place.where: place.detail for place in plan.places}
    assert "defer does not apply" in details["model.layers.0.post_attention_layernorm"]


def test_cancelled_norms_in_front_of_qkv_norms_are_exact_at_any_epsilon(tmp_path: Path) -> None:
    source, plan = plan_of(tmp_path, "cancel", "gemma4_text", rms_norm_eps=0.3, **GEMMA4)
    assert plan.savings["norms_cancelled"] == 4
    convert(plan, source, tmp_path / "out")
    assert moved(tmp_path) <= 1e-9
    # The correction is what makes it so: without it the ε counts for too much or too little.
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["tricksmith"]["flashnorm"]["corrected"] = []
    path.write_text(json.dumps(config))
    assert moved(tmp_path) > 1e-7


def test_a_cancelled_model_writes_through_its_cache_in_bfloat16(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "deepseek_v3", torch.bfloat16, **MLA)
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm:form=cancel")])
    convert(plan, source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", trust_remote_code=True)
    ids = torch.arange(3, 15).view(2, 6)
    spread_experts(model)
    text = model.eval().generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with torch.no_grad():
        steps = model(text[:, :-1], use_cache=False).logits[:, 5:].argmax(-1)
    assert text.shape == (2, 12)
    assert (steps == text[:, 6:]).float().mean() > 0.8


@pytest.mark.parametrize("lora", [24, None])
def test_latent_attention_keeps_the_scale_of_its_rotary_part(lora: int | None, tmp_path: Path) -> None:
    model_type = "deepseek_v3" if lora else "deepseek_v2"
    source, plan = plan_of(tmp_path, "cancel", model_type, rms_norm_eps=0.1, **{**MLA, "q_lora_rank": lora})
    detail = next(p.detail for p in plan.places if p.where == "model.layers.0.input_layernorm")
    assert "4 of 20 columns" in detail
    assert ("q_proj" in detail.partition("stays for")[2]) == (lora is None)
    convert(plan, source, tmp_path / "out")
    assert moved(tmp_path) <= 1e-9


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_a_scale_that_values_need_is_not_cancelled(model_type: str, tmp_path: Path) -> None:
    _, plan = plan_of(tmp_path, "cancel", model_type)
    assert not plan.fits
    assert not plan.parts
    reasons = {place.where: place.detail for place in plan.places}
    assert "no norm" in reasons["model.layers.0.input_layernorm"]


def test_a_product_beyond_float16_is_scaled_before_it_is_rounded() -> None:
    model = nn.Sequential(nn.RMSNorm(64, eps=1e-6), nn.Linear(64, 8), nn.RMSNorm(8, eps=1e-6))
    with torch.no_grad():
        model[1].weight.fill_(0.5)
    model = model.half()
    x = torch.full((2, 3, 64), 30_000.0, dtype=torch.float16)
    expected = model(x)
    linear = {"at": "1", "norm": "0"}
    install(model, {"deferred": [{"at": "0", "eps": 1e-6}], "linears": [linear]})
    assert torch.isfinite(model[1](model[0](x))).all()
    assert torch.allclose(model(x), expected, atol=1e-2)


def test_in_half_precision_a_cancelled_norm_is_deferred_instead() -> None:
    model = nn.Sequential(nn.RMSNorm(64, eps=1e-6), nn.Linear(64, 8, bias=False), nn.RMSNorm(8, eps=1e-6))
    model = model.half()
    x = torch.full((2, 3, 64), 30_000.0, dtype=torch.float16)
    expected = model(x)
    install(
        model,
        {
            "deferred": [{"at": "0", "eps": 1e-6}],
            "linears": [{"at": "1", "norm": "0", "columns": []}],
            "corrected": [{"at": "2", "eps": 1e-6, "norm": "0", "axes": [0, 1]}],
        },
    )
    assert torch.allclose(model(x), expected, atol=1e-2)
