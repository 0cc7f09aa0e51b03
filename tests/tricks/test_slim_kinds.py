"""Slim attention under every kind of position and attention that transformers has: cached decoding past the
length that positions were made for, in float64, against the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.slim_models import Public
from benchmarks.slim_models import planned as planned_at_full_size
from tricks import Plan, convert, parse_trick, read_checkpoint
from tricks.draft import draft_plan
from tricks.float64 import float64_arithmetic
from tricks.quiet import quiet
from tricks.small import randomise

_PLAIN = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}
    return {"model_type": "llama", "rope_parameters": parameters, "max_position_embeddings": 16}


_LONG = {"short_factor": [1.0 + i / 9 for i in range(8)], "long_factor": [2.0 + i / 5 for i in range(8)]}
KINDS: dict[str, dict[str, Any]] = {
    "linear": _rope("linear"),
    "dynamic": _rope("dynamic"),
    "yarn": _rope("yarn", original_max_position_embeddings=16),
    "llama3": _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    "longrope": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **_LONG},
        "original_max_position_embeddings": 16,
    },
    # d/2 < e < d: the residual restores what K leaves out of the input.
    "two groups, wide heads": {"model_type": "llama", "head_dim": 24, "num_key_value_heads": 2},
    "wide heads": {"model_type": "llama", "head_dim": 24},
    "interleaved": {"model_type": "cohere", "use_qk_norm": False},
    "interleaved, positions looked up in the module": {"model_type": "gptj", "rotary_dim": 8},
    "interleaved, fused, looked up": {"model_type": "codegen", "rotary_dim": 8},
    "turned backwards": {"model_type": "nanochat"},
    "norms by heads": {"model_type": "qwen3"},
    "partial, biases": {"model_type": "phi", "partial_rotary_factor": 0.5, "rope_parameters": None},
    "partial": {"model_type": "stablelm", "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "sliding window": {"model_type": "mistral", "sliding_window": 9},
    "soft caps": {"model_type": "gemma2", "sliding_window": 9, "query_pre_attn_scalar": 16},
    "alibi": {"model_type": "bloom", "n_head": 4, "n_layer": 2},
    "alibi, fused": {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "beside linear attention": {
        "model_type": "olmo_hybrid",
        "layer_types": ["linear_attention", "full_attention"],
    },
    "learned positions": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 64},
}


@torch.no_grad()
def decoded(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt, a continued prefill and single tokens, with one cache."""
    cache, logits = None, []
    with float64_arithmetic():
        for piece in (ids[:, :6], ids[:, 6:11], *ids[:, 11:].split(1, 1)):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
    return torch.cat(logits, 1)


def planned(folder: Path, fields: dict[str, Any], trick: str) -> Plan:
    """A random model's plan; the model is saved in `folder`."""
    with quiet():
        config = AutoConfig.for_model(**{**_PLAIN, **fields})
        model: Any = AutoModelForCausalLM.from_config(config).double().eval()
        randomise(model)
        model.save_pretrained(folder)
    return draft_plan(read_checkpoint(folder), [parse_trick(trick)])


CASES = [("k", kind) for kind in KINDS] + [("v", kind) for kind in ("alibi", "learned positions", "yarn")]


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_decodes_as_the_source(mode: str, kind: str, tmp_path: Path) -> None:
    plan = planned(tmp_path / "source", KINDS[kind], f"slim:mode={mode}")
    assert all(place.fits for place in plan.places)
    rope = plan.config["tricksmith"]["slim"]["layers"][-1]["rope"]
    # Frequencies that change with the length of the text: cos and sin are kept, not positions.
    assert rope is None or (rope["source"] is None) == (kind in ("dynamic", "longrope"))
    convert(plan, tmp_path / "source", tmp_path / "slim", settling=False)
    ids = torch.randint(1, 96, (2, 26), generator=torch.Generator().manual_seed(0))
    found = []
    for folder in ("source", "slim"):
        with quiet(), float64_arithmetic():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                tmp_path / folder, dtype=torch.float64, trust_remote_code=folder == "slim"
            )
        found.append(decoded(loaded.double().eval(), ids))
    error = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert error < 1e-9


@pytest.mark.parametrize(
    ("fields", "trick", "reason"),
    [
        (
            {"model_type": "llama", "num_key_value_heads": 2},
            "slim",
            "64 numbers a token in 2 heads, and its input, which slim attention must be able to",
        ),
        ({"model_type": "rwkv"}, "slim", "keeps no cache of keys and values"),
        ({"model_type": "mamba", "state_size": 4}, "slim", "keeps no cache of keys and values"),
        ({"model_type": "llama"}, "slim:mode=e", "no cross attention"),
        ({"model_type": "llama"}, "slim:residual=64", "saves nothing"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    fields: dict[str, Any], trick: str, reason: str, tmp_path: Path
) -> None:
    plan = planned(tmp_path, fields, trick)
    assert not plan.fits
    assert reason in plan.places[0].detail


def test_a_model_of_published_size_is_planned_layer_by_layer() -> None:
    """The small model that is watched has fewer layers; every layer of the real one is planned."""
    row = planned_at_full_size(Public("Llama-2-7B", "llama", 4096, 32, 32, 4096))
    assert row["before"] == 2 * 2 * 4096 * 32
    assert row["after"] == 32 * (2 * 4096 + 256 + 2) + 4


def test_layers_of_several_types_are_planned_by_their_type() -> None:
    types = 3 * [*(3 * ["sliding_attention"]), "full_attention"]
    fields = {"layer_types": types, "head_dim": 256, "sliding_window": 512}
    row = planned_at_full_size(Public("like Gemma 3", "gemma3_text", 2048, 12, 8, 4096, fields=fields))
    assert row["before"] == 2 * 2 * 2048 * 12
    assert row["after"] < 0.54 * row["before"]
