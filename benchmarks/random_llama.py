"""A Llama with random weights in a folder of its own: big enough to time, the same at every call.

Every tensor but the number of layers is fixed, so that models of different sizes share one largest tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

HIDDEN, INNER, HEADS, VOCABULARY = 2048, 6144, 16, 8192
LARGEST_BYTES = VOCABULARY * HIDDEN * 2
"""Bytes of the largest tensor, the embedding, in bfloat16."""


def config(layers: int) -> dict[str, object]:
    """`config.json` of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the model."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        for name in "qkvo":
            yield f"{at}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{at}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, INNER)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def build(folder: Path, layers: int, shards: int = 4) -> None:
    """Write the model into `folder` (made here), in bfloat16, with a byte-level tokenizer."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(layers)
    names = list(shapes(layers))
    # Split by count of tensors, as even as it gets: sizes of neighbouring tensors alternate anyway.
    bounds = [round(len(names) * shard / shards) for shard in range(shards + 1)]
    where: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {}
        for name, shape in names[bounds[shard] : bounds[shard + 1]]:
            values = torch.randn(shape, generator=generator)
            values = 1 + 0.1 * values if len(shape) == 1 else 0.02 * values
            tensors[name] = values.to(torch.bfloat16)
            total += tensors[name].nbytes
            where[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2))

    alphabet = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("layers", type=int)
    given = parser.parse_args()
    build(given.folder, given.layers)
