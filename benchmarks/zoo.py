"""Small random models of many architectures, on which conversions are verified."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "n_embd": 64,
    "ffn_hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DENSE = (
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neox gptj stablelm starcoder2 "
    "cohere granite olmo2 glm helium smollm3 exaone4 seed_oss arcee ernie4_5 hunyuan_v1_dense ministral"
).split()
EXPERTS = "mixtral qwen2_moe qwen3_moe olmoe deepseek_v2 deepseek_v3 granitemoe phimoe minimax jetmoe".split()


def make(folder: Path, model_type: str, dtype: torch.dtype, seed: int) -> Path:
    """A model of the type with weights that keep activations at one scale, gains around 1 and real biases.

    Raises:
        Exception: whatever transformers says to a config of these sizes.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type)
    config = AutoConfig.for_model(
        model_type,
        **{key: value for key, value in SIZES.items() if hasattr(config, key) or key.endswith("token_id")},
        tie_word_embeddings=False,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and ("norm" in name.lower() or ".ln_" in name):
                spread = torch.exp(0.3 * torch.randn_like(parameter))
                # A gain of 1 + w is stored as w, a bias as it is.
                centre = parameter.mean()
                parameter.copy_(spread if centre == 1 else spread - 1)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                fan_in = parameter.shape[-2] if "Conv1D" in _owner(model, name) else parameter.shape[-1]
                parameter.copy_(torch.randn_like(parameter) * fan_in**-0.5)
    with contextlib.suppress(AttributeError):
        model.generation_config.eos_token_id = None
    model.to(dtype).save_pretrained(folder)
    return folder


def _owner(model: Any, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__
