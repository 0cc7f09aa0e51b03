"""Small random models in their real checkpoint format, with gains and biases far from one and zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tricks.float64 import float64_arithmetic
from tricks.model import spread_experts
from tricks.small import randomise

COMMON = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


MLA: dict[str, Any] = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "num_key_value_heads": 4,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "head_dim": 4,
}  # fmt: skip
"""Fields of `deepseek_v3` and its like."""

OMIT = object()
"""A field of `COMMON` that a configuration does not take."""


def save_model(folder: Path, model_type: str, dtype: torch.dtype = torch.float64, **fields: Any) -> Path:
    """Save a random model of `model_type` as its checkpoint format really is."""
    given = {key: value for key, value in {**COMMON, **fields}.items() if value is not OMIT}
    config = AutoConfig.for_model(model_type, **given)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    randomise(model)
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


def logits(folder: Path) -> torch.Tensor:
    """Float64 logits [2, 9, vocabulary] of a stock-loaded model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    spread_experts(model)
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), float64_arithmetic():
        return model.double().eval()(input_ids=ids, use_cache=False).logits
