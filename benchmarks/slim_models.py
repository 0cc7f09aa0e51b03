"""`make table-slim`: cache bytes of public models, before and after slim attention, from configs alone.

Each model is planned as `tricksmith plan` would, from the sizes in its published config; no weights exist and
nothing is downloaded. A part of a larger model (the decoder of one that sees or hears) is planned as the text
model it is. What transformers has no class for is computed by the plan's formula and marked so. Writes
results/slim_models.json and the table of docs/tricks/slim_models.md. Models and contexts: Graef and
Wasielewski (arXiv:2503.05840), tables 1 and 10, and further models of the Hub with full heads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tricks import parse_trick
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.draft import draft_plan
from tricks.families import classes
from tricks.layout import saved_shapes
from tricks.model import Blueprint, build
from tricks.quiet import quiet
from tricks.slim import rank_step

RESULTS = Path(__file__).parent / "results" / "slim_models.json"
PAGE = Path(__file__).parent.parent / "docs" / "tricks" / "slim_models.md"


@dataclass(frozen=True)
class Public:
    """A model: width, layers, heads and context from its config; `paper`: the table that lists it."""

    name: str
    type: str
    width: int
    layers: int
    heads: int
    context: int
    paper: str = ""
    note: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def _t5(d_kv: int, **more: Any) -> dict[str, Any]:
    return {"d_kv": d_kv, **more}


MODELS = [
    Public("CodeLlama-7B", "llama", 4096, 32, 32, 16384, "1"),
    Public("CodeLlama-13B", "llama", 5120, 40, 40, 16384, "1"),
    Public("CodeGemma-7B, Gemma-7B", "gemma", 3072, 28, 16, 8192, "1",
           "the paper's 2.67x needs a cache of inputs, which RoPE rules out; K alone is 2x",
           {"head_dim": 256}),
    Public("Aya-23-35B, Command-R v01", "cohere", 8192, 40, 64, 8192, "1"),
    Public("SmolLM2-1.7B", "llama", 2048, 24, 32, 8192, "1"),
    Public("SmolVLM (text)", "llama", 2048, 24, 32, 16384, "1"),
    Public("Evo-1-131k", "", 4096, 3, 32, 131072, "1",
           "the paper counts 32 layers; attention is in 3 (8, 16, 24), so 3.2 G numbers, not 34.4 G"),
    Public("Phi-3-mini-128k", "phi3", 3072, 32, 32, 131072, "1"),
    Public("BitNet_b1_58-3B", "llama", 3200, 26, 32, 2048, "1"),
    Public("DCLM-7B", "", 4096, 32, 32, 2048, "1"),
    Public("OLMo-1B", "olmo", 2048, 16, 16, 4096, "1"),
    Public("OLMo-2-1124-13B", "olmo2", 5120, 40, 40, 4096, "1",
           "keys are normalised: K is cached before that"),
    Public("Chronos-Bolt-tiny", "t5", 256, 4, 4, 512, "1", "", _t5(64)),
    Public("Chronos-Bolt-base, Flan-T5-base", "t5", 768, 12, 12, 512, "1",
           "the paper counts self attention alone", _t5(64)),
    Public("Qwen2-Audio-7B (text)", "qwen2", 4096, 32, 32, 8192, "1"),
    Public("LLaVA-NeXT-Video-7B (text)", "llama", 4096, 32, 32, 4096, "1"),
    Public("LLaVA-Vicuna-13B (text)", "llama", 5120, 40, 40, 4096, "1"),
    Public("Vicuna-7B-16k", "llama", 4096, 32, 32, 16384, "1"),
    Public("Vicuna-13B-16k", "llama", 5120, 40, 40, 16384, "1"),
    Public("Flan-T5-XXL", "t5", 4096, 24, 64, 512, "1", "the paper counts self attention alone", _t5(64)),
    Public("Whisper-tiny", "whisper", 384, 4, 6, 448, "1",
           "the paper's 8.7x leaves out the encoder's output itself; with it 4.7x"),
    Public("Whisper-large-v3", "whisper", 1280, 32, 20, 448, "1",
           "the paper's 8.7x leaves out the encoder's output itself; with it 7.9x"),
    Public("GPT-2 XL", "gpt2", 1600, 48, 25, 1024, "1"),
    Public("METAGENE-1", "llama", 4096, 32, 32, 512, "10"),
    Public("OLMoE-1B-7B", "olmoe", 2048, 16, 16, 4096, "10"),
    Public("DRAMA-base", "llama", 768, 12, 12, 8192, "10", "an encoder: it keeps no cache in use"),
    Public("Chameleon-7B (text)", "llama", 4096, 32, 32, 4096, "10",
           "keys are normalised too, as in OLMo-2"),
    Public("llm-compiler-13B", "llama", 5120, 40, 40, 16384, "10"),
    Public("DeepSeek-VL2-tiny (text)", "llama", 1280, 12, 10, 4096, "10"),
    Public("CrisperWhisper", "whisper", 1280, 32, 20, 448, "10"),
    Public("Moonshine-base", "moonshine", 416, 8, 8, 194, "10"),
    Public("Moondream-2 (text)", "phi", 2048, 24, 32, 2048, "10"),
    Public("Stable-Code-3B, Rocket-3B", "stablelm", 2560, 32, 32, 16384, "10"),
    Public("StableLM-2-1.6B", "stablelm", 2048, 24, 32, 4096, "10"),
    Public("OpenMath-CodeLlama-13B", "llama", 5120, 40, 40, 16384, "10"),
    Public("MAIRA-2 (text)", "llama", 4096, 32, 32, 4096, "10"),
    Public("OpenLLaMA-13B", "llama", 5120, 40, 40, 2048, "10"),
    Public("TimesFM-200M", "", 1280, 20, 16, 512, "10", "forecasts in one pass"),
    Public("MetricX-24-XXL, mT5-XXL", "mt5", 4096, 24, 64, 1536, "10", "scores in one step", _t5(64)),
    Public("BioMedLM", "gpt2", 2560, 32, 20, 1024, "10"),
    Public("MiniCPM-V2 (text)", "llama", 2304, 40, 36, 4096, "10"),
    Public("UltraLM-65B", "llama", 8192, 80, 64, 2048, "10"),
    Public("LLaMA-2-7B-32K", "llama", 4096, 32, 32, 32768, "10"),
    Public("Dolly-v2-12B, Pythia-12B", "gpt_neox", 5120, 36, 40, 2048, "10"),
    Public("MPT-7B-8K", "mpt", 4096, 32, 32, 8192, "10"),
    Public("MPT-30B", "mpt", 7168, 48, 64, 8192, "10"),
    Public("BLOOM", "bloom", 14336, 70, 112, 2048, "10"),
    Public("T5-3B", "t5", 1024, 24, 32, 512, "text", "", _t5(128)),
    Public("T5-11B", "t5", 1024, 24, 128, 512, "text", "", _t5(128)),
    Public("Llama-2-7B", "llama", 4096, 32, 32, 4096),
    Public("Llama-2-13B", "llama", 5120, 40, 40, 4096),
    Public("Qwen1.5-7B", "qwen2", 4096, 32, 32, 32768),
    Public("Qwen1.5-14B", "qwen2", 5120, 40, 40, 32768),
    Public("DeepSeek-LLM-7B", "llama", 4096, 30, 32, 4096),
    Public("DeepSeek-Coder-1.3B", "llama", 2048, 24, 16, 16384),
    Public("OLMo-7B", "olmo", 4096, 32, 32, 2048),
    Public("OLMo-2-1124-7B", "olmo2", 4096, 32, 32, 4096),
    Public("Phi-1.5", "phi", 2048, 24, 32, 2048),
    Public("Phi-2", "phi", 2560, 32, 32, 2048),
    Public("Pythia-1.4B", "gpt_neox", 2048, 24, 16, 2048),
    Public("Pythia-6.9B", "gpt_neox", 4096, 32, 32, 2048),
    Public("GPT-NeoX-20B", "gpt_neox", 6144, 44, 64, 2048),
    Public("GPT-2", "gpt2", 768, 12, 12, 1024),
    Public("OPT-6.7B", "opt", 4096, 32, 32, 2048),
    Public("OPT-66B", "opt", 9216, 64, 72, 2048),
    Public("XGLM-7.5B", "xglm", 4096, 32, 32, 2048),
    Public("BLOOM-7B1", "bloom", 4096, 30, 32, 2048),
    Public("Persimmon-8B", "persimmon", 4096, 36, 64, 16384),
    Public("BART-large", "bart", 1024, 12, 16, 1024),
    Public("mBART-50", "mbart", 1024, 12, 16, 1024),
    Public("GPT-J-6B", "gptj", 4096, 28, 16, 2048),
    Public("Gemma-2-9B", "gemma2", 3584, 42, 16, 8192, "text", "grouped: 8 key heads of 256",
           {"head_dim": 256, "num_key_value_heads": 8}),
    Public("Llama-3.1-8B", "llama", 4096, 32, 32, 131072, "", "grouped: 8 key heads",
           {"num_key_value_heads": 8}),
]  # fmt: skip


def config_of(model: Public) -> dict[str, Any]:
    """The fields of its config that decide the cache, under the names of its type."""
    known = AutoConfig.for_model(model.type)
    asked = {
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "max_position_embeddings": model.context,
        "intermediate_size": 8 * model.width // 3 // 256 * 256,
        "vocab_size": 32000,
    }
    if model.type in ("t5", "mt5"):
        asked = {"d_model": model.width, "num_layers": model.layers, "num_heads": model.heads}
    if model.type in ("whisper", "bart", "mbart"):
        sides = {"layers": model.layers, "attention_heads": model.heads}
        asked = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sides.items()}
        asked["d_model"] = model.width
    if model.type == "moonshine":
        names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        asked |= {f"{side}_{name}": asked[name] for side in ("encoder", "decoder") for name in names}
    if model.type == "opt":
        asked |= {"word_embed_proj_dim": model.width, "ffn_dim": 4 * model.width}
    if model.type == "xglm":
        asked = {"d_model": model.width, "num_layers": model.layers, "attention_heads": model.heads}
    names = {**known.attribute_map, "pad_token_id": ""}
    fields = {names.get(name, name): value for name, value in asked.items()}
    return {name: value for name, value in {**fields, **model.fields}.items() if name in known.to_dict()} | {
        "pad_token_id": None
    }


def planned(model: Public) -> dict[str, Any]:
    """Its row: bytes a token before and after, in 16 bits, and what is cached or why nothing is."""
    if not model.type:
        return _formula(model)
    with quiet():
        config = AutoConfig.for_model(model.type, **config_of(model))
        both = [name for name in classes(model.type) if name.endswith("ForConditionalGeneration")]
        architecture = next(iter([*both, *classes(model.type)]))
        tensors, place = {}, 0
        empty = build(Blueprint(architecture, config), "meta", torch.bfloat16)
        for name, shape in saved_shapes(empty).items():
            size = 2 * shape.numel()
            tensors[name] = TensorInfo(name, "model.safetensors", "BF16", tuple(shape), place, place + size)
            place += size
        stored = {**config.to_dict(), "architectures": [architecture]}
        checkpoint = Checkpoint(model.name, stored, tensors, ("model.safetensors",))
        plan = draft_plan(checkpoint, [parse_trick("slim")])
    how = plan.places[0].detail if not plan.fits else ", ".join(sorted(_modes(plan)))
    before = int(plan.savings.get("cache_bytes_per_token_before", 0))
    return _row(model, before, int(plan.savings.get("cache_bytes_per_token_after", 0)), how, plan.fits)


def _modes(plan: Any) -> set[str]:
    words = {"k": "K + residual", "v": "V + residual", "x": "input", "e": "encoder's output"}
    return {words[spec["mode"]] for spec in plan.config["tricksmith"]["slim"]["layers"]}


def _formula(model: Public) -> dict[str, Any]:
    step = rank_step(model.width)
    rank = -(-model.width // 16 // step) * step
    before = 4 * model.width * model.layers
    after = (2 * model.width + rank + 2) * model.layers
    return _row(model, before, after, "K + residual (by formula)", True)


def _row(model: Public, before: int, after: int, how: str, fits: bool) -> dict[str, Any]:
    return {
        "model": model.name,
        "paper": model.paper,
        "width": model.width,
        "layers": model.layers,
        "context": model.context,
        "before": before,
        "after": after if fits else before,
        "how": how if fits else f"nothing: {how}",
        "note": model.note,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | table | d | layers | bytes before | after | | at its full context | what is cached |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in rows:
        whole = f"{one['before'] * one['context'] / 1e9:.3g} → {one['after'] * one['context'] / 1e9:.3g} GB"
        how = one["how"] + (f"; {one['note']}" if one["note"] else "")
        lines.append(
            f"| {one['model']} | {one['paper']} | {one['width']} | {one['layers']} | {one['before']:,} | "
            f"{one['after']:,} | {one['after'] / one['before']:.1%} | {whole} | {how} |"
        )
    return "\n".join(lines)


def main() -> None:
    rows = []
    for model in MODELS:
        rows.append(planned(model))
        print(rows[-1]["model"], rows[-1]["before"], rows[-1]["after"], rows[-1]["how"][:90], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    PAGE.write_text(f"{head}{mark}\n{table(rows)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
