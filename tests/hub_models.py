"""Small models on disk for the Hub's tests: real safetensors files in the layouts that the Hub knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evals import Evidence, Verdict
from service.card import render_card
from service.manifest import build_manifest, file_digests
from service.papers import write_papers
from service.source import Source
from tricks import Conversion, Place, Plan, parse_trick

EQUIVALENT = Evidence(verdict=Verdict.EQUIVALENT, notes=("measured in a test",))

CARD = """---
license: other
license_name: smith-licence
license_link: LICENSE
language: [en, de]
tags: [text-generation-inference, tiny]
model-index:
- name: source
  results:
  - task: {type: text-generation}
    dataset: {type: mmlu, name: MMLU}
    metrics: [{type: accuracy, value: 99.9}]
---
# A source
"""


def write_model(folder: Path, *, shards: int = 2, hidden: int = 96, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama-shaped checkpoint with tokenizer, card, licence and files to leave out."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (256, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{at}.self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, 2 * hidden)
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (256, hidden)
    tensors = {name: torch.randn(shape, generator=random).bfloat16() for name, shape in shapes.items()}
    names = list(tensors)
    parts = [names[part::shards] for part in range(shards)]
    files = (
        [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
        if shards > 1
        else ["model.safetensors"]
    )
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": 256,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("Forge as you please.\n")
    (folder / "README.md").write_text(CARD)
    for unwanted in ("pytorch_model.bin", "model.gguf", "modeling_x.py", "training_args.bin"):
        (folder / unwanted).write_bytes(b"not for us")
    return folder


def small_llama(folder: Path) -> Path:
    """A random Llama of 100 kB with gains that are not one: enough to be planned and proven."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def convert_by_copy(source: Source, out: Path, *, trick: str = "flashnorm") -> dict[str, Any]:
    """A finished conversion whose weights are the source's, enough to publish. Returns its manifest."""
    assert source.folder is not None
    out.mkdir(parents=True)
    for file in source.files:
        shutil.copyfile(Path(source.folder) / file.name, out / file.name)
    plan = Plan(
        model=source.model,
        architecture="LlamaForCausalLM",
        tricks=(parse_trick(trick),),
        places=(
            Place(
                "flashnorm", "model.layers.0.input_layernorm", True, "gain folded into q_proj, k_proj, v_proj"
            ),
            Place(
                "flashnorm", "model.layers.1.input_layernorm", True, "gain folded into q_proj, k_proj, v_proj"
            ),
            Place("flashnorm", "model.norm", False, "the head is tied to the embedding"),
        ),
        proof=3e-15,
    )
    conversion = Conversion(file_digests(out, [file.name for file in source.files]), 0, 0)
    manifest = build_manifest(source, plan, conversion, Path(source.folder))
    write_papers(out, manifest=manifest, card=render_card(source, plan, EQUIVALENT, manifest))
    return manifest
