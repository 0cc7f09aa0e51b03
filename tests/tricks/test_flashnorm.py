"""FlashNorm on real checkpoints of many wirings: the converted folder answers as its source does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tricks.small_models import logits, save_model
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WIRINGS = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 12},
    "phi3": {},
    "granite": {},
    "cohere": {},
    "olmo2": {},
    "glm4": {},
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64},
    "gpt_neox": {"num_key_value_heads": 4},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": MOE,
    "deepseek_v3": {
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
    },
    "mamba": {"state_size": 4},
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_converted_model_answers_as_its_source_does(wiring: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", wiring.partition("-")[0], **WIRINGS[wiring])
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    convert(plan, source, tmp_path / "out")
    before, after = logits(source), logits(tmp_path / "out")
    assert ((before - after).abs().max() / before.abs().max()).item() <= 1e-9


def folded(plan: Plan) -> dict[str, str]:
    return {place.where: place.detail for place in plan.places if place.fits}


def left(plan: Plan) -> dict[str, str]:
    return {place.where: place.detail for place in plan.places if not place.fits}


def test_every_norm_of_a_llama_is_folded_and_stays_as_an_identity(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert not left(plan)
    assert folded(plan)["model.layers.1.post_attention_layernorm"] == "folded into mlp.gate_proj, mlp.up_proj"
    assert folded(plan)["model.norm"] == "folded into lm_head"
    convert(plan, source, tmp_path / "out")
    for name, p in AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters():
        assert "norm" not in name or torch.equal(p, torch.ones_like(p))


def test_a_one_plus_gain_leaves_zeros_behind(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "gemma")
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    convert(plan, source, tmp_path / "out")
    weights = {k: v for f in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(f).items()}
    assert not weights["model.layers.0.input_layernorm.weight"].any()


def test_a_tied_head_keeps_the_final_norm(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", tie_word_embeddings=True)
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert list(left(plan)) == ["model.norm"]
    assert "embedding" in left(plan)["model.norm"]


def test_post_norms_and_qk_norms_stay_with_a_reason(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "olmo2")
    reasons = left(make_plan(read_checkpoint(source), [parse_trick("flashnorm")]))
    assert "residual" in reasons["model.layers.0.post_attention_layernorm"]
    assert "model.layers.0.self_attn.q_norm" in reasons


def test_a_norm_bias_without_a_slot_stays_with_a_reason(tmp_path: Path) -> None:
    source = save_model(
        tmp_path / "source", "stablelm", num_attention_heads=2, num_key_value_heads=2, head_dim=24
    )
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert "nowhere to go" in left(plan)["model.layers.0.post_attention_layernorm"]


def test_a_plan_survives_json(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "gpt2", n_embd=48, n_head=4, n_layer=2, n_positions=64)
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert Plan.from_json(plan.to_json()) == plan
