"""A small model of the same class: every width divided by one factor, so that all relations between widths
(heads times head dim, latent ranks, fused sizes) stay true, with fewer layers, experts and tokens."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from tricks.gains import is_candidate
from tricks.model import Blueprint
from tricks.quiet import quiet

_WIDTH = re.compile(
    r"(^|_)(hidden_sizes?|intermediate_size|size_per_head|head_dim|headdim|d_head|head_size|dim|rank|n_embd|n_inner"
    r"|inner_dim|d_model|d_ff|d_kv|d_ssm|ffn_dim|width|embedding_size|hidden_dim|expand_dim|lru_width|mlp_dim"
    r"|ssm_size|d_inner|ffn_size|ffn_hidden_size|rotary_dim|per_layer_input|embed_dim|kv_channels|hidden_channels"
    r"|latent_size|input_size|output_size|mlp_size)($|_)"
)
_NO_WIDTH = re.compile(
    r"vocab|num_|kernel|chunk|patch|image|window|conv|position|_id$|_factor|multiple|layers|n_heads|multiplier"
)
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
_SECTIONS = "mrope_section"
"""How many rotary frequencies each axis of a position has: they sum to half the width of a head."""
_NOT_CONFIGS = re.compile(r"rope|id2label|label2id|quantization|task_specific")
_REACH = re.compile(r"chunk_size$|sliding_window$")
_MOST_KINDS = 8
_VOCAB = 128
_REACHED = 4
"""Tokens that a window or a chunk holds, so that the few tokens of a proof leave it."""
_FEW_EXPERTS = 16
_MOST_PARAMETERS = 70_000_000


def shrunk(blueprint: Blueprint) -> Iterator[Blueprint]:
    """A model's configuration made smaller in several ways, the smallest first, the full depth last."""
    fields = blueprint.config.to_dict()
    widths = [value for part in _parts(fields) for _, value in _widths(part)]
    divisor = math.gcd(*widths) if widths else 1
    power = divisor & -divisor
    deepest = max((_depth(part) for part in _parts(fields)), default=1)
    some_experts = any(part.get(key) for part in _parts(fields) for key in _EXPERTS)
    for depth in dict.fromkeys(min(depth, deepest) for depth in (4, 2, 8, deepest)):
        for experts in (_FEW_EXPERTS, None) if some_experts else (None,):
            for step in _steps(power):
                small = _shrunk(fields, step, depth, experts)
                small.pop("dtype", None)
                try:
                    with quiet():
                        config = type(blueprint.config).from_dict(small)
                except Exception:  # noqa: BLE001 - a config class may refuse a size; the next may suit it
                    continue
                yield Blueprint(blueprint.architecture, config)


def _steps(power: int) -> Iterator[int]:
    """Divisors of the widths: first those that divide all of them, then those that round some down."""
    steps = [1 << k for k in range(6, -1, -1)]
    yield from (step for step in steps if step <= power)
    yield from (step for step in steps if step > power)


def _parts(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and the configurations inside it."""
    yield fields
    for key, value in fields.items():
        if _is_config(key, value):
            yield from _parts(value)


def _depth(fields: dict[str, Any]) -> int:
    counts = [fields[key] for key in DEPTHS if isinstance(fields.get(key), int)]
    return max(counts, default=1)


def _widths(fields: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The names and values of one configuration's widths, those of the configurations inside it left out."""
    for key, value in fields.items():
        if not isinstance(key, str) or _NO_WIDTH.search(key) or not _WIDTH.search(key):
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, int) and not isinstance(entry, bool) and entry > 1:
                yield key, entry


def _shrunk(fields: dict[str, Any], divisor: int, depth: int, experts: int | None) -> dict[str, Any]:
    chosen = _chosen_layers(fields, depth)
    widths = {key for key, _ in _widths(fields)}
    small: dict[str, Any] = {}
    for key, value in fields.items():
        if _by_layer(value):
            places = {layer: place for place, layer in enumerate(chosen)}
            small[key] = {
                f"{places[int(layer)]:0{len(layer)}}": _shrunk(part, divisor, depth, experts)
                for layer, part in value.items()
                if int(layer) in places
            }
        elif _is_config(key, value):
            small[key] = _shrunk(value, divisor, depth, experts)
        elif isinstance(value, dict) and isinstance(value.get(_SECTIONS), list):
            ends = [end // divisor for end in accumulate(value[_SECTIONS])]
            small[key] = {**value, _SECTIONS: [end - start for start, end in pairwise([0, *ends])]}
        elif key in DEPTHS and isinstance(value, int):
            small[key] = min(value, len(chosen))
        elif key in _EXPERTS and isinstance(value, int) and experts is not None:
            small[key] = min(value, experts)
        elif _REACH.search(key) and isinstance(value, int):
            small[key] = min(value, _REACHED)
        elif key.startswith("vocab_size") and isinstance(value, int):
            small[key] = min(value, _VOCAB)
        elif key.endswith(("token_id", "token_index")):
            small[key] = _token(value)
        else:
            kept = [value[layer] for layer in chosen] if _per_layer(value, fields) else copy.deepcopy(value)
            small[key] = _divided(kept, divisor) if key in widths else kept
    return small


def _chosen_layers(fields: dict[str, Any], depth: int) -> list[int]:
    """The layers to keep: one of each kind that the configuration tells apart, and the first ones."""
    layers = _depth(fields)
    lists = [value for value in fields.values() if _per_layer(value, fields)]
    tables = [value for value in fields.values() if _by_layer(value)]
    kinds: dict[str, int] = {}
    for layer in range(layers):
        own = [part for table in tables for name, part in table.items() if int(name) == layer]
        kinds.setdefault(repr([value[layer] for value in lists] + own), layer)
    count = min(max(depth, min(len(kinds), _MOST_KINDS)), layers)
    first = [*list(kinds.values())[:count], *range(layers)]
    return sorted(list(dict.fromkeys(first))[:count])


def _per_layer(value: Any, fields: dict[str, Any]) -> bool:
    """Whether a field of a configuration lists something for each layer."""
    return isinstance(value, list) and len(value) == _depth(fields) and len(value) > 1


def _is_config(key: Any, value: Any) -> bool:
    """Whether a field holds a configuration of a part of the model."""
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return named and isinstance(key, str) and not _NOT_CONFIGS.search(key)


def _by_layer(value: Any) -> bool:
    """Whether a field holds a configuration for some layers, by their numbers."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(str(key).isdigit() and isinstance(part, dict) for key, part in value.items())
    )


def _divided(value: Any, divisor: int) -> Any:
    if isinstance(value, list):
        return [_divided(entry, divisor) for entry in value]
    return max(value // divisor, 1) if isinstance(value, int) and value > 1 else value


def _token(value: Any) -> Any:
    if isinstance(value, list):
        return [min(v, _VOCAB - 1) for v in value]
    return min(value, _VOCAB - 1) if isinstance(value, int) else value


def affordable(model: nn.Module) -> bool:
    """Whether a model (on meta) is small enough to be filled with float64 numbers."""
    return sum(p.numel() for p in model.parameters()) <= _MOST_PARAMETERS


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every gain, bias and matrix a random value, so that no mistake hides behind a one or a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            norm = is_candidate(module)
            for p in module.parameters(recurse=False):
                noise = torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.5
                if norm and p.ndim == 1:
                    p.add_(noise.to(p.dtype))
                elif p.ndim == 1:
                    p.add_(0.2 * noise.to(p.dtype))
                elif p.ndim >= 2:
                    p.copy_(noise * (3.0 / math.sqrt(max(p.shape[-1], 1))))
