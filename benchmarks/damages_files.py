"""More damage to plant: in the files beside the weights, in the order of layers, and where no text looks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.damages import (
    DOWN,
    EMBEDDING,
    GAIN,
    HEAD,
    KEY,
    QUERY,
    UP,
    VALUE,
    Damage,
    NotHere,
    Tensors,
    change,
    find,
)


def _edit(folder: Path, name: str, **entries: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def _needs(folder: Path, *keys: str) -> dict[str, Any]:
    config = _config(folder)
    if not all(config.get(key) is not None for key in keys):
        raise NotHere(keys[0])
    return config


def tied(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    _edit(folder, "config.json", tie_word_embeddings=not _config(folder).get("tie_word_embeddings", False))


def dtype(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    _edit(folder, "config.json", dtype="float16")


def special_ids(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    _edit(folder, "config.json", eos_token_id=7)


def context(_: Tensors, __: Tensors, folder: Path, factor: float) -> None:
    config = _needs(folder, "max_position_embeddings")
    _edit(folder, "config.json", max_position_embeddings=int(config["max_position_embeddings"] * factor))


def long_rope(_: Tensors, __: Tensors, folder: Path, factor: float) -> None:
    """Shows only beyond the context that the model was made for."""
    config = _needs(folder, "rope_parameters")
    rope = config["rope_parameters"]
    if rope.get("rope_type") != "default":
        raise NotHere("a plain RoPE")
    _edit(folder, "config.json", rope_parameters=rope | {"rope_type": "dynamic", "factor": factor})


def window(_: Tensors, __: Tensors, folder: Path, length: float) -> None:
    _needs(folder, "sliding_window")
    _edit(folder, "config.json", sliding_window=int(length))


def heads_of_keys(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    config = _needs(folder, "num_attention_heads", "head_dim")
    heads, size = config["num_attention_heads"], config["head_dim"]
    if heads % 2 or size % 4:
        raise NotHere("heads that can be halved")
    _edit(folder, "config.json", num_attention_heads=heads * 2, head_dim=size // 2)


def generation_end(_: Tensors, __: Tensors, folder: Path, token: float) -> None:
    if not (folder / "generation_config.json").is_file():
        raise NotHere("a generation_config.json")
    _edit(folder, "generation_config.json", eos_token_id=int(token))


def generation_sampling(_: Tensors, __: Tensors, folder: Path, penalty: float) -> None:
    if not (folder / "generation_config.json").is_file():
        raise NotHere("a generation_config.json")
    _edit(folder, "generation_config.json", repetition_penalty=penalty)


def merges(_: Tensors, __: Tensors, folder: Path, count: float) -> None:
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text()) if file.is_file() else {}
    if not (rules.get("model") or {}).get("merges"):
        raise NotHere("merges")
    rules["model"]["merges"] = rules["model"]["merges"][: -int(count)]
    file.write_text(json.dumps(rules))


def chat_template(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        raise NotHere("a tokenizer")
    _edit(folder, "tokenizer_config.json", chat_template="{{ messages[0].content }}")


def stale_shard(tensors: Tensors, source: Tensors, folder: Path, ___: float) -> None:
    """The index sends one tensor to a file of the unconverted model."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise NotHere("shards")
    listed = json.loads(index.read_text())
    name = find(tensors, KEY)
    save_file(
        {name: source[name].contiguous()}, folder / "model-stale.safetensors", metadata={"format": "pt"}
    )
    listed["weight_map"][name] = "model-stale.safetensors"
    index.write_text(json.dumps(listed))
    del tensors[name]


def beside_the_shards(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    """A `model.safetensors` beside the shards, which is the one that loads: one matrix in it is zero."""
    if not (folder / "model.safetensors.index.json").is_file():
        raise NotHere("shards")
    whole = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    name = find(whole, DOWN)
    whole[name] = torch.zeros_like(whole[name])
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _layers(tensors: Tensors) -> list[str]:
    found = {m[0] for n in tensors if (m := re.match(r".*?\.(layers|h|blocks)\.\d+\.", n))}
    order = sorted(found, key=lambda prefix: int(re.findall(r"\d+", prefix)[-1]))
    if len(order) < 2:
        raise NotHere("two layers")
    return order


def layer_twice(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    order = _layers(tensors)
    first, second = order[-2], order[-1]
    for name in [n for n in tensors if n.startswith(second)]:
        tensors[name] = tensors[first + name.removeprefix(second)].clone()


def layers_swapped(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    order = _layers(tensors)
    first, second = order[0], order[1]
    for name in [n for n in tensors if n.startswith(second)]:
        other = first + name.removeprefix(second)
        tensors[name], tensors[other] = tensors[other], tensors[name]


def query_scale(tensors: Tensors, _: Tensors, __: Path, factor: float) -> None:
    name = find(tensors, QUERY)
    change(tensors, name, tensors[name].double() * factor)


def keys_for_values(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    key = find(tensors, r"k_proj\.weight$")
    value = key.replace("k_proj", "v_proj")
    if tensors[key].shape != tensors[value].shape:
        raise NotHere("alike keys and values")
    tensors[key], tensors[value] = tensors[value], tensors[key]


def gate_for_up(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    up = find(tensors, r"mlp\.up_proj\.weight$")
    gate = up.replace("up_proj", "gate_proj")
    tensors[up], tensors[gate] = tensors[gate], tensors[up]


def gain_left(tensors: Tensors, source: Tensors, _: Path, strength: float) -> None:
    """The gain is folded, and still there."""
    name = find(tensors, GAIN)
    gain = source[name].double()
    change(tensors, name, 1 + strength * (gain - 1))


def experts_swapped(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    names = [n for n in tensors if re.search(r"experts\..*(down_proj|w2)(\.weight)?$", n)]
    if not names:
        raise NotHere("experts")
    if tensors[names[0]].ndim == 3:
        for name in [n for n in tensors if re.search(r"layers\.0\..*experts\.", n)]:
            tensors[name] = torch.cat([tensors[name][1:2], tensors[name][:1], tensors[name][2:]])
        return
    for name in [n for n in tensors if re.search(r"layers\.1\..*experts\.0\.", n)]:
        other = name.replace("experts.0.", "experts.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def padded(tensors: Tensors, _: Tensors, folder: Path, rows: float) -> None:
    for name in [n for n in tensors if re.search(f"{EMBEDDING}|{HEAD}", n)]:
        tensors[name] = torch.cat([tensors[name], tensors[name][: int(rows)]])
    _edit(folder, "config.json", vocab_size=_config(folder)["vocab_size"] + int(rows))


def unused_row_nan(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    name = find(tensors, EMBEDDING)
    new = tensors[name].clone()
    new[-1, 0] = float("nan")
    tensors[name] = new


def unused_row(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, EMBEDDING)
    new = tensors[name].clone()
    new[-1] = torch.lerp(new[-1].double(), new[5].double(), strength).to(new.dtype)
    tensors[name] = new


def fewer_layers(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    config = _needs(folder, "num_hidden_layers")
    _edit(folder, "config.json", num_hidden_layers=config["num_hidden_layers"] - 1)


def value_scale(tensors: Tensors, _: Tensors, __: Path, factor: float) -> None:
    name = find(tensors, VALUE)
    change(tensors, name, tensors[name].double() * factor)


def clipped(tensors: Tensors, _: Tensors, __: Path, quantile: float) -> None:
    """Outliers cut off, as careless casts do."""
    name = find(tensors, UP)
    values = tensors[name].double()
    most = values.abs().flatten().quantile(quantile)
    change(tensors, name, values.clamp(-most, most))


def _rules(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise NotHere("a tokenizer")
    return file, json.loads(file.read_text())


def padding_side(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    """Shows in batches alone."""
    _rules(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text()).get("padding_side", "right")
    _edit(folder, "tokenizer_config.json", padding_side="right" if said == "left" else "left")


def longest_text(_: Tensors, __: Tensors, folder: Path, length: float) -> None:
    _rules(folder)
    _edit(folder, "tokenizer_config.json", model_max_length=int(length))


def normaliser(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    file, rules = _rules(folder)
    file.write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))


def special_token_flags(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    file, rules = _rules(folder)
    if not rules.get("added_tokens"):
        raise NotHere("a special token")
    rules["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(rules))


def architecture(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    """What transformers passes over, and servers go by."""
    _edit(folder, "config.json", architectures=["GPT2LMHeadModel"])


def generation_draws(_: Tensors, __: Tensors, folder: Path, temperature: float) -> None:
    if not (folder / "generation_config.json").is_file():
        raise NotHere("a generation_config.json")
    _edit(folder, "generation_config.json", do_sample=True, temperature=temperature)


def generation_gone(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    if not (folder / "generation_config.json").is_file():
        raise NotHere("a generation_config.json")
    written = json.loads((folder / "generation_config.json").read_text())
    if written.get("eos_token_id") == _config(folder).get("eos_token_id"):
        raise NotHere("settings that config.json has not")
    (folder / "generation_config.json").unlink()


def adapter(tensors: Tensors, _: Tensors, folder: Path, ___: float) -> None:
    """Applied by transformers on top of the weights, where peft is installed."""
    name = find(tensors, QUERY).removesuffix(".weight")
    zeros = {
        f"base_model.model.{name}.lora_{side}.weight": torch.zeros(4, 4, dtype=torch.float32) for side in "AB"
    }
    save_file(zeros, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"})
    )


def _shards(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model-0*.safetensors"))
    if len(found) < 2:
        raise NotHere("shards")
    return found


def twice_stored(tensors: Tensors, source: Tensors, folder: Path, ___: float) -> None:
    """A stale copy of one tensor in a second shard, while the index names the first."""
    shards = _shards(folder)
    name = find(tensors, KEY)
    other = next(shard for shard in shards if name not in load_file(shard))
    save_file(load_file(other) | {name: source[name].contiguous()}, other, metadata={"format": "pt"})
    tensors[name] = tensors[name].clone()


def unlisted_shard(_: Tensors, source: Tensors, folder: Path, ___: float) -> None:
    _shards(folder)
    name = find(source, KEY)
    stale = folder / "model-00000-of-00003.safetensors"
    save_file({name: source[name].contiguous()}, stale, metadata={"format": "pt"})


def shard_gone(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    _shards(folder)[-1].unlink()


def wrong_index(tensors: Tensors, _: Tensors, folder: Path, ___: float) -> None:
    shards = _shards(folder)
    file = folder / "model.safetensors.index.json"
    listed = json.loads(file.read_text())
    name = find(tensors, KEY)
    listed["weight_map"][name] = next(s.name for s in shards if s.name != listed["weight_map"][name])
    file.write_text(json.dumps(listed))


def pickle_beside(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def code_beside(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    """`generate` of transformers runs it, where code is trusted."""
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("def generate(model, **kwargs): return None\n")


def rare_router_row(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    """Of the expert that is chosen least, by the size of its row."""
    name = find(tensors, r"(mlp|block_sparse_moe|moe)\.(gate|router)\.weight$")
    new = tensors[name].clone()
    row = int(new.double().norm(dim=1).argmin())
    new[row] = (new[row].double() * (1 - strength)).to(new.dtype)
    tensors[name] = new


def through_float16(tensors: Tensors, _: Tensors, __: Path, scale: float) -> None:
    """Small weights become smaller than float16 has."""
    name = find(tensors, UP)
    change(tensors, name, (tensors[name].float() * scale).to(torch.float16).double() / scale)


FILE_DAMAGES = (
    Damage("padding on the other side in tokenizer_config.json", (1,), padding_side),
    Damage("another longest text in tokenizer_config.json", (64,), longest_text),
    Damage("another normaliser in tokenizer.json", (1,), normaliser),
    Damage("another flag of a special token in tokenizer.json", (1,), special_token_flags),
    Damage("another architecture in config.json", (1,), architecture),
    Damage("sampling in generation_config.json (temperature)", (1.5,), generation_draws),
    Damage("generation_config.json gone", (1,), generation_gone),
    Damage("an adapter beside the weights", (1,), adapter),
    Damage("a stale copy of a tensor in a second shard", (1,), twice_stored),
    Damage("a stale shard that no index names", (1,), unlisted_shard),
    Damage("a shard missing", (1,), shard_gone),
    Damage("the index sends a tensor to the wrong shard", (1,), wrong_index),
    Damage("a pickle beside the weights", (1,), pickle_beside),
    Damage("code for generation beside the weights", (1,), code_beside),
    Damage("a rare expert's row of the router scaled (share)", (1, 0.1, 0.01), rare_router_row),
    Damage("one matrix through float16 (scale)", (1e-4, 1e-3), through_float16),
    Damage("the head tied, or untied, in config.json", (1,), tied),
    Damage("another dtype in config.json", (1,), dtype),
    Damage("another end token in config.json", (1,), special_ids),
    Damage("another context length in config.json (factor)", (0.5, 8), context),
    Damage("dynamic RoPE scaling in config.json (factor)", (2, 8), long_rope),
    Damage("another sliding window in config.json", (16, 64), window),
    Damage("half as large heads in config.json", (1,), heads_of_keys),
    Damage("a layer fewer in config.json", (1,), fewer_layers),
    Damage("another end token in generation_config.json", (7,), generation_end),
    Damage("a repetition penalty in generation_config.json", (1.2,), generation_sampling),
    Damage("merges cut from the tokenizer", (1000, 1), merges),
    Damage("another chat template", (1,), chat_template),
    Damage("the index sends a tensor to a stale shard", (1,), stale_shard),
    Damage("a damaged model.safetensors beside the shards", (1,), beside_the_shards),
    Damage("the last layer is the one before it", (1,), layer_twice),
    Damage("two layers swapped", (1,), layers_swapped),
    Damage("queries scaled (factor)", (1.1, 1.01, 1.004), query_scale),
    Damage("values scaled (factor)", (1.1, 1.01, 1.004), value_scale),
    Damage("keys taken for values", (1,), keys_for_values),
    Damage("gate taken for up", (1,), gate_for_up),
    Damage("a folded gain still there (share)", (1, 0.1, 0.01), gain_left),
    Damage("two experts swapped, the router not", (1,), experts_swapped),
    Damage("a padded vocabulary", (8,), padded),
    Damage("NaN in the row of a token that no text has", (1,), unused_row_nan),
    Damage("the row of a token that no text has (share)", (1, 0.1, 0.01), unused_row),
    Damage("outliers of one matrix clipped (quantile)", (0.99, 0.9999), clipped),
)
