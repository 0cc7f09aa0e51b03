"""A Llama of any depth on the disk, all header and no weights: its shards are holes."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

WIDTH, INNER, VOCABULARY, KEYS = 4096, 14336, 128256, 1024


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, of Llama-3-8B's widths."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCABULARY, WIDTH),
        "lm_head": (VOCABULARY, WIDTH),
        "model.norm": (WIDTH,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {at + f"self_attn.{n}_proj": (WIDTH, WIDTH) for n in "qo"}
        found |= {at + f"self_attn.{n}_proj": (KEYS, WIDTH) for n in "kv"}
        found |= {at + f"mlp.{n}_proj": (INNER, WIDTH) for n in ("gate", "up")}
        found |= {at + "mlp.down_proj": (WIDTH, INNER)}
        found |= {at + n: (WIDTH,) for n in ("input_layernorm", "post_attention_layernorm")}
    return {name + ".weight": shape for name, shape in found.items()}


def config(layers: int) -> dict[str, Any]:
    """Its `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": INNER,
        "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    }


def header(layers: int) -> dict[str, Any]:
    """The header of its one safetensors file, in bfloat16."""
    found, begin = {}, 0
    for name, shape in shapes(layers).items():
        end = begin + 2 * prod(shape)
        found[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return found


def deep_model(folder: Path, layers: int) -> Path:
    """Write it into the new `folder`; its file is as long as real weights and takes a few hundred kB."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(layers)))
    told = header(layers)
    text = json.dumps(told).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + max(each["data_offsets"][1] for each in told.values()))
    return folder
