"""Small random models of every type that transformers registers, saved in their own checkpoint formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tricks.errors import BadInput, TricksmithError
from tricks.families import TABLES, reads_text
from tricks.model import Blueprint, build, first_line
from tricks.proof import outputs
from tricks.quiet import quiet
from tricks.small import affordable, randomise, shrunk

FAMILIES = {
    "causal LM": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "speech": "AutoModelForSpeechSeq2Seq",
    "masked LM": "AutoModelForMaskedLM",
    "vision-language": "AutoModelForImageTextToText",
}
"""Families of models -> the auto class whose table lists their types."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_QWEN_VL = {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [16, 24, 24]}}}
_GLM_V = {
    "text_config": {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}}
}
REPAIRS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "glm46v": _GLM_V,
    "glm4v": _GLM_V,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen2_5_vl": _QWEN_VL,
    "qwen2_vl": _QWEN_VL,
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
"""Types whose default configuration does not build or run -> fields that make it."""


def types(family: str) -> dict[str, str]:
    """Model type -> class name, for every type of a family."""
    table = TABLES[FAMILIES[family]]
    return {model_type: names[0] for model_type, names in sorted(table.items())}


def save(model_type: str, architecture: str, folder: Path) -> None:
    """Save a small float64 model of a type, with gains far from one and biases far from zero.

    Raises:
        BadInput: it takes no text, or no small configuration of it builds and runs.
    """
    if not reads_text(architecture):
        raise BadInput(f"{architecture} takes no text")
    try:
        with quiet():
            config = AutoConfig.for_model(model_type, **REPAIRS.get(model_type, {}))
    except Exception as error:
        raise BadInput(f"its default configuration is not valid: {first_line(error)}") from error
    problem = "no size of it is small enough"
    for blueprint in shrunk(Blueprint(architecture, config)):
        try:
            if not affordable(build(blueprint, "meta", torch.float32)):
                continue
            torch.manual_seed(0)
            model: Any = build(blueprint, "cpu", torch.float64)
            model.double()  # some weights are made in float32 whatever is asked for
            randomise(model)
            with quiet():
                if not all(torch.isfinite(value).all() for value in outputs(model).values()):
                    problem = "its outputs are not finite"
                    continue
                model.save_pretrained(folder)
            return
        except TricksmithError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way at an odd size
            problem = first_line(error)
    raise BadInput(f"no small model of it could be built and run: {problem}")
