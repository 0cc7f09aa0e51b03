"""MatShrink's savings from configurations alone, and its precision on the trained model of this repo, pivoted
against naive (`make bench-matshrink`).

The shares are those of all weights of one layer's attention blocks; nothing is downloaded. For the precision,
the compat form of both is stored in each dtype and run in float32, so that all that differs is how the
weights were rounded in their new basis; the perplexity is that of held-out text. Writes
results/matshrink.json.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models.evaluate import HELDOUT, MODEL
from tricks import convert, make_plan, parse_trick, read_checkpoint
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.draft import draft_plan
from tricks.edits import Make
from tricks.layout import saved_shapes
from tricks.model import build, read_config

RESULTS = Path(__file__).parent / "results" / "matshrink.json"
TOKENS = 512


CONFIGS: dict[str, dict[str, Any]] = {
    "Whisper-tiny": {
        "model_type": "whisper", "d_model": 384, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 6, "decoder_attention_heads": 6,
    },
    "T5-3B": {
        "model_type": "t5", "d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_heads": 32, "num_layers": 1,
    },
    "GPT-2": {"model_type": "gpt2", "n_layer": 1},
    "CodeGemma-7B": {"model_type": "gemma", "num_hidden_layers": 1},
    "Pythia-6.9B": {
        "model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 1,
        "num_attention_heads": 32,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "DeepSeek-V3": {"model_type": "deepseek_v3", "num_hidden_layers": 1, "first_k_dense_replace": 1},
}  # fmt: skip


def share(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What one layer's attention loses, by kind, over all the weights that it has."""
    made = AutoConfig.for_model(**config).to_dict() | {"architectures": None}
    blueprint = read_config(made, name)
    model = build(blueprint, "meta", torch.bfloat16)
    file = "model.safetensors"
    infos = {
        key: TensorInfo(key, file, "BF16", tuple(shape), 0, 0) for key, shape in saved_shapes(model).items()
    }
    plan = draft_plan(Checkpoint(name, made, infos, (file,)), [parse_trick("matshrink")])
    blocks = {place.where for place in plan.places if place.fits and "value" in place.detail}
    weights = sum(p.numel() for path in blocks for p in model.get_submodule(path).parameters() if p.ndim == 2)
    lost = {"values": 0, "keys": 0, "latents": 0}
    for edit in plan.edits:
        for merge in edit.options["merges"] if isinstance(edit, Make) else ():
            lost[merge["kind"]] += merge["left"][2] ** 2
    return {"model": name, "attention weights": weights, **lost, "share": sum(lost.values()) / weights}


def main() -> None:
    torch.set_num_threads(1)
    shares = [share(name, config) for name, config in CONFIGS.items()]
    print("| model | attention weights of a layer | fewer between V and O | between Q and K | share |")
    print("|---|---:|---:|---:|---:|")
    for one in shares:
        print(
            f"| {one['model']} | {one['attention weights']:,} | {one['values']:,} | {one['keys']:,} | "
            f"{one['share']:.1%} |"
        )
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor(tokenizer(HELDOUT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    rows = ids[: 8 * TOKENS].view(8, TOKENS)

    def loss_of(folder: Path) -> float:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(input_ids=rows, use_cache=False).logits.log_softmax(-1)
        return -logits[:, :-1].gather(-1, rows[:, 1:, None]).mean().item()

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            source = Path(scratch) / name
            stored: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
            stored.save_pretrained(source)
            before = loss_of(source)
            for pivot in ("first", "qr"):
                plan = make_plan(
                    read_checkpoint(source), [parse_trick(f"matshrink:form=compat,pivot={pivot}")]
                )
                out = source.with_name(f"{name}-{pivot}")
                done = convert(plan, source, out)
                after = loss_of(out)
                results.append(
                    {
                        "dtype": name,
                        "pivot": pivot,
                        "worst condition number": round(done.conditions["matshrink.block"], 1),
                        "perplexity of the source": math.exp(before),
                        "perplexity": math.exp(after),
                    }
                )
    RESULTS.write_text(
        json.dumps({"shares": shares, "precision": results}, indent=2) + "\n", encoding="utf-8"
    )
    print("| dtype | channels | worst condition number | perplexity, source | perplexity |")
    print("|---|---|---:|---:|---:|")
    for one in results:
        print(
            f"| {one['dtype']} | {one['pivot']} | {one['worst condition number']:,.0f} | "
            f"{one['perplexity of the source']:.4f} | {one['perplexity']:.4f} |"
        )


if __name__ == "__main__":
    main()
