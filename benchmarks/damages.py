"""Damage to plant in converted models: what goes wrong in conversions, at several strengths.

A damage changes a converted folder's tensors or its other files. Each knows at which strengths it comes, the
strongest first, and refuses a model that has nothing for it to damage.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


class NotHere(Exception):
    """The model has nothing that this damage could be done to."""


@dataclass(frozen=True)
class Damage:
    """`plant(tensors, source, folder, strength)` does the harm; `source` are the unconverted tensors."""

    name: str
    strengths: tuple[float, ...]
    plant: Callable[[Tensors, Tensors, Path, float], None]


def damaged(source: Path, converted: Path, out: Path, damage: Damage, strength: float) -> Path:
    """A copy of the converted folder with the damage done, its manifest kept.

    Raises:
        NotHere: see there.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(converted, out)
    shards = {file: load_file(file) for file in sorted(out.glob("*.safetensors"))}
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    original = {n: t for file in sorted(source.glob("*.safetensors")) for n, t in load_file(file).items()}
    before, stored = _beside(out), dict(tensors)
    damage.plant(tensors, original, out, strength)
    if _same(stored, tensors) and _beside(out) == before:
        raise NotHere("a number that this changes once it is rounded")
    for file, shard in shards.items():
        if not file.is_file() or _same(stored, tensors):
            continue  # gone on purpose, or another one on purpose
        save_file(
            {name: tensors[name].contiguous() for name in shard if name in tensors},
            file,
            metadata={"format": "pt"},
        )
    return out


def _beside(folder: Path) -> dict[str, bytes]:
    """The names of all files, and what stands in those that hold no weights."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.name: b"%d" % p.stat().st_size if p.suffix == ".safetensors" else p.read_bytes() for p in files}


def _same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def find(tensors: Tensors, pattern: str, which: int = -1) -> str:
    """One tensor's name: the middle one of all that match, or the one asked for."""
    names = sorted((n for n in tensors if re.search(pattern, n)), key=_natural)
    if not names:
        raise NotHere(pattern)
    return names[len(names) // 2 if which < 0 else which]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def change(tensors: Tensors, name: str, new: torch.Tensor) -> None:
    """Store a new value in the old one's type."""
    tensors[name] = new.to(tensors[name].dtype)


QUERY = r"(q_proj|query_key_value|c_attn|qkv_proj)\.weight$"
KEY = r"(k_proj|query_key_value|c_attn|qkv_proj)\.weight$"
VALUE = r"(v_proj|query_key_value|c_attn|qkv_proj)\.weight$"
OUT = r"(o_proj|self_attn\.dense|attention\.dense|attn\.c_proj|out_proj)\.weight$"
UP = r"(up_proj|gate_up_proj|dense_h_to_4h|c_fc|fc1|w3)\.weight$"
DOWN = r"(down_proj|dense_4h_to_h|mlp\.c_proj|fc2|w2)\.weight$"
MATRIX = r"(proj|dense|c_fc|c_attn|query_key_value|fc1|fc2|w1|w2|w3)\w*\.weight$"
EMBEDDING = r"(embed_tokens|wte|embed_in|word_embeddings)\.weight$"
HEAD = r"(lm_head|embed_out)\.weight$"
GAIN = r"(input_layernorm|ln_1|attention_norm|self_attn_layer_norm)\.weight$"


def _gain(tensors: Tensors, source: Tensors) -> tuple[torch.Tensor, str]:
    """The gain of the first norm that was folded into a key projection, and that projection."""
    norm = find(source, GAIN)
    linear = find(tensors, re.escape(norm.split("input_layernorm")[0]) + ".*" + KEY)
    gain = source[norm].double()
    if tensors[linear].shape[1] != len(gain):
        raise NotHere("a linear behind a gain")
    return gain, linear


def gain_twice(tensors: Tensors, source: Tensors, _: Path, strength: float) -> None:
    gain, linear = _gain(tensors, source)
    change(tensors, linear, tensors[linear].double() * gain.abs().pow(strength))


def gain_lost(tensors: Tensors, source: Tensors, _: Path, strength: float) -> None:
    gain, linear = _gain(tensors, source)
    change(tensors, linear, tensors[linear].double() / gain.abs().clamp(min=1e-3).pow(strength))


def gain_plus_one(tensors: Tensors, source: Tensors, _: Path, strength: float) -> None:
    gain, linear = _gain(tensors, source)
    change(tensors, linear, tensors[linear].double() * (gain + strength) / gain)


def final_gain_lost(tensors: Tensors, source: Tensors, _: Path, strength: float) -> None:
    norm = find(source, r"^(model|transformer|gpt_neox)\.(norm|ln_f|final_layer_norm)\.weight$")
    head = find(tensors, HEAD)
    gain = source[norm].double().abs().clamp(min=1e-3)
    change(tensors, head, tensors[head].double() / gain.pow(strength))


def next_layer(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, UP, which=0)
    other = find(tensors, UP, which=1)
    if tensors[name].shape != tensors[other].shape:
        raise NotHere("two alike layers")
    rows = max(1, int(len(tensors[name]) * strength))
    new = tensors[name].clone()
    new[:rows] = tensors[other][:rows]
    tensors[name] = new


def _swap_blocks(name: str, tensors: Tensors, strength: float, axis: int) -> None:
    size = max(1, int(tensors[name].shape[axis] // 8 * strength))
    order = torch.arange(tensors[name].shape[axis])
    order[:size], order[size : 2 * size] = torch.arange(size, 2 * size), torch.arange(size)
    tensors[name] = tensors[name].index_select(axis, order)


def query_heads(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    _swap_blocks(find(tensors, QUERY), tensors, strength, 0)


def value_heads(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    _swap_blocks(find(tensors, VALUE), tensors, strength, 0)


def output_heads(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    _swap_blocks(find(tensors, OUT), tensors, strength, 1)


def channels(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    _swap_blocks(find(tensors, UP), tensors, strength, 0)


def transposed(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = next(
        (n for n in sorted(tensors, key=_natural) if re.search(MATRIX, n) and _square(tensors[n])), None
    )
    if name is None:
        raise NotHere("a square matrix")
    new = tensors[name].clone()
    size = max(2, int(len(new) * strength))
    new[:size, :size] = tensors[name][:size, :size].T
    tensors[name] = new


def _square(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]


def bias_lost(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, r"(proj|dense|c_attn|c_fc|query_key_value|fc1)\.bias$")
    change(tensors, name, tensors[name].double() * (1 - strength))


def _rounded(tensor: torch.Tensor, bits: float) -> torch.Tensor:
    step = tensor.double().abs().max() / (2 ** (bits - 1) - 1)
    return (tensor.double() / step).round() * step


def few_bits_matrix(tensors: Tensors, _: Tensors, __: Path, bits: float) -> None:
    name = find(tensors, UP)
    change(tensors, name, _rounded(tensors[name], bits))


def few_bits_layer(tensors: Tensors, _: Tensors, __: Path, bits: float) -> None:
    layer = re.match(r".*?\.\d+\.", find(tensors, UP))
    assert layer is not None
    for name in tensors:
        if name.startswith(layer[0]) and tensors[name].ndim >= 2:
            change(tensors, name, _rounded(tensors[name], bits))


def noise(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, DOWN)
    drawn = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    change(tensors, name, tensors[name].double() * (1 + strength * drawn))


def head_row(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, HEAD)
    new = tensors[name].clone()
    row = _usual(len(new))
    new[row] = torch.lerp(new[row].double(), new[row + 1].double(), strength).to(new.dtype)
    tensors[name] = new


def embedding_row(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, EMBEDDING)
    new = tensors[name].clone()
    row = _usual(len(new))
    new[row] = torch.lerp(new[row].double(), new[row + 1].double(), strength).to(new.dtype)
    tensors[name] = new


def _usual(vocabulary: int) -> int:
    """A token that a text of this vocabulary has: merges learnt early stand behind the 256 bytes."""
    return min(vocabulary - 2, 258)


def flipped_bit(tensors: Tensors, _: Tensors, __: Path, factor: float) -> None:
    name = find(tensors, DOWN)
    new = tensors[name].clone().flatten()
    new[new.abs().argmax()] *= factor
    tensors[name] = new.view_as(tensors[name])


def rows_zeroed(tensors: Tensors, _: Tensors, __: Path, rows: float) -> None:
    name = find(tensors, DOWN)
    new = tensors[name].clone()
    new[..., : int(rows), :] = 0
    tensors[name] = new


def sign(tensors: Tensors, _: Tensors, __: Path, share: float) -> None:
    name = find(tensors, OUT)
    new = tensors[name].clone()
    new[: max(1, int(len(new) * share))] *= -1
    tensors[name] = new


def float8(tensors: Tensors, _: Tensors, __: Path, matrices: float) -> None:
    names = [n for n in sorted(tensors, key=_natural) if re.search(MATRIX, n)][: int(matrices)]
    if not names:
        raise NotHere("a matrix")
    for name in names:
        change(tensors, name, tensors[name].to(torch.float8_e4m3fn).double())


def experts(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, r"experts\..*(down_proj|w2)(\.weight)?$", which=0)
    if tensors[name].ndim == 3:
        first, second = tensors[name][0], tensors[name][1]
    else:
        other = find(tensors, r"experts\..*(down_proj|w2)(\.weight)?$", which=1)
        first, second = tensors[name], tensors[other]
    new = torch.lerp(first.double(), second.double(), strength).to(first.dtype)
    if tensors[name].ndim == 3:
        whole = tensors[name].clone()
        whole[0] = new
        tensors[name] = whole
    else:
        tensors[name] = new


def router(tensors: Tensors, _: Tensors, __: Path, strength: float) -> None:
    name = find(tensors, r"(mlp|block_sparse_moe|moe)\.(gate|router)\.weight$")
    new = tensors[name].clone()
    new[0] = torch.lerp(new[0].double(), new[1].double(), strength).to(new.dtype)
    tensors[name] = new


def _config(folder: Path) -> tuple[Path, dict[str, object]]:
    file = folder / "config.json"
    return file, json.loads(file.read_text())


def rope_base(_: Tensors, __: Tensors, folder: Path, factor: float) -> None:
    file, config = _config(folder)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        raise NotHere("a RoPE base")
    config["rope_parameters"] = rope | {"rope_theta": rope["rope_theta"] * factor}
    file.write_text(json.dumps(config))


def epsilon(_: Tensors, __: Tensors, folder: Path, value: float) -> None:
    file, config = _config(folder)
    key = next((k for k in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if k in config), None)
    if key is None:
        raise NotHere("an epsilon")
    config[key] = value
    file.write_text(json.dumps(config))


def activation(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    file, config = _config(folder)
    if config.get("hidden_act") != "silu":
        raise NotHere("silu")
    config["hidden_act"] = "gelu"
    file.write_text(json.dumps(config))


def special_token(_: Tensors, __: Tensors, folder: Path, ___: float) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise NotHere("a tokenizer")
    rules = json.loads(file.read_text())
    if not rules.get("added_tokens"):
        raise NotHere("a special token")
    rules["added_tokens"] = rules["added_tokens"][:-1]
    file.write_text(json.dumps(rules))


def one_nan(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    name = find(tensors, DOWN)
    new = tensors[name].clone()
    new.view(-1)[7] = float("nan")
    tensors[name] = new


def tensor_missing(tensors: Tensors, _: Tensors, __: Path, ___: float) -> None:
    del tensors[find(tensors, UP)]


DAMAGES = (
    Damage("a gain folded twice into one linear", (1, 0.3, 0.1, 0.03, 0.01), gain_twice),
    Damage("a gain not folded into one linear", (1, 0.3, 0.1, 0.03, 0.01), gain_lost),
    Damage("1 + w folded for w", (1, 0.1, 0.01), gain_plus_one),
    Damage("the final gain lost from the head", (1, 0.1, 0.01), final_gain_lost),
    Damage("rows of the next layer's matrix (off-by-one shard)", (1, 0.1, 0.01), next_layer),
    Damage("query heads swapped (share of a head)", (1, 0.25, 0.05), query_heads),
    Damage("value heads swapped (share of a head)", (1, 0.25, 0.05), value_heads),
    Damage("output projection's heads swapped (share)", (1, 0.25, 0.05), output_heads),
    Damage("channels of the MLP swapped (share)", (1, 0.25, 0.05), channels),
    Damage("a square matrix transposed (share of its side)", (1, 0.3, 0.1), transposed),
    Damage("a bias lost (share)", (1, 0.1, 0.01), bias_lost),
    Damage("one matrix rounded (bits)", (4, 6, 8, 10, 12), few_bits_matrix),
    Damage("one layer rounded (bits)", (4, 6, 8, 10), few_bits_layer),
    Damage("relative noise on one matrix", (0.3, 0.1, 0.03, 0.01, 0.003), noise),
    Damage("one row of the head wrong (share)", (1, 0.1, 0.01), head_row),
    Damage("one row of the embedding wrong (share)", (1, 0.1, 0.01), embedding_row),
    Damage("one weight multiplied", (256, 16, -1, 2), flipped_bit),
    Damage("rows of one matrix zeroed", (16, 4, 1), rows_zeroed),
    Damage("sign of rows flipped (share)", (1, 0.1, 0.01), sign),
    Damage("matrices cast through float8", (100, 4, 1), float8),
    Damage("an expert taken for another (share)", (1, 0.3, 0.05), experts),
    Damage("a router's row wrong (share)", (1, 0.3, 0.05), router),
    Damage("RoPE base changed (factor)", (0.1, 0.9, 1.01, 1.001), rope_base),
    Damage("norm epsilon changed", (0.1, 1e-3, 1e-4), epsilon),
    Damage("activation changed", (1,), activation),
    Damage("a special token dropped from the tokenizer", (1,), special_token),
    Damage("one NaN", (1,), one_nan),
    Damage("a tensor missing", (1,), tensor_missing),
)
