"""The table of the precompute paper from configurations alone (`make bench-precompute`).

Each model is built without weights and planned; nothing is downloaded. The hypothetical parallel Mixtral of
the paper exists as no class, so its row is computed by the same formula from its sizes. Source: Graef,
"Transformer tricks: Precomputing the first layer" (arXiv:2402.13388), section 3.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch

from tricks import parse_trick
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.draft import draft_plan
from tricks.model import build, read_config
from tricks.precompute import BATCHES, savings

RESULTS = Path(__file__).parent / "results" / "precompute.json"
_LLAMA = {"hidden_act": "silu", "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "Pythia-6.9B": {
        "model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 50432, "use_parallel_residual": True,
    },
    "Mistral-7B": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, **_LLAMA,
    },
    "Llama-3-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, **_LLAMA,
    },
    "Gemma-2B": {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000,
        "tie_word_embeddings": True,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def row(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """One model's figures, from its plan."""
    model = build(read_config(config, name), "meta", torch.bfloat16)
    tied = bool(config.get("tie_word_embeddings"))
    infos, place = {}, 0
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        key = "embed_out.weight" if key == "lm_head.weight" and config["model_type"] == "gpt_neox" else key
        size = 2 * tensor.numel()
        infos[key] = TensorInfo(key, "model.safetensors", "BF16", tuple(tensor.shape), place, place + size)
        place += size
    checkpoint = Checkpoint(name, config, infos, ("model.safetensors",))
    plan = draft_plan(checkpoint, [parse_trick("precompute")])
    assert plan.fits, plan.places
    weights = sum(prod(info.shape) for info in infos.values())
    return figures(name, plan.savings, weights)


def figures(name: str, saved: dict[str, int | float], weights: int) -> dict[str, Any]:
    factors = [
        saved[f"first_layer_reads_before_batch_{b}"] / saved[f"first_layer_reads_after_batch_{b}"]
        for b in BATCHES
    ]
    added = -saved["weight_bytes_saved"] / 2
    eliminated = saved["first_layer_reads_before_batch_16"] - saved["first_layer_reads_before_batch_1"]
    eliminated = saved["first_layer_reads_before_batch_1"] - eliminated / 15
    return {
        "model": name,
        "weights": weights,
        "reads at batch 1": [
            saved["first_layer_reads_before_batch_1"],
            saved["first_layer_reads_after_batch_1"],
        ],
        "factors": [round(factor, 1) for factor in factors],
        "share of all weights that are no longer read at batch 1": round(eliminated / weights, 4),
        "weights added": int(added),
        "growth": round(added / weights, 4),
    }


def main() -> None:
    rows = [row(name, config) for name, config in CONFIGS.items()]
    experts = 3 * 4096 * 14336
    for name, read in (("Mixtral, parallel, all 8 experts read", 8), ("Mixtral, parallel, 2 of 8 read", 2)):
        gone = 2 * 4096 * (4096 + 1024) - 4096 * 4096
        before = savings(32000, 4096, 10240, gone + read * experts, 2)
        stored = savings(32000, 4096, 10240, gone + 8 * experts, 2)
        rows.append(
            figures(name, {**before, "weight_bytes_saved": stored["weight_bytes_saved"]}, 46_702_792_704)
        )
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("| model | reads at batch 1 | fewer at batch 1 / 16 / 256 / 1024 | share of all weights | memory |")
    print("|---|---:|---:|---:|---:|")
    for one in rows:
        before, after = one["reads at batch 1"]
        factors = " / ".join(f"{factor:,.0f}x" for factor in one["factors"])
        share = one["share of all weights that are no longer read at batch 1"]
        reads = f"{before:,.0f} → {after:,.0f}"
        print(f"| {one['model']} | {reads} | {factors} | {share:.2%} | {one['growth']:+.1%} |")


if __name__ == "__main__":
    main()
