"""A model seen before anybody decides: its size, its cache, and every trick looked at. Headers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from service.headers import read_headers
from service.source import Source, resolve
from tricks import TRICKS, Checkpoint

if TYPE_CHECKING:
    from tricks import Look, Part

_KEPT_DTYPES = {"float32": 4, "float64": 8}  # bytes per cached number; every other dtype takes two


@dataclass(frozen=True)
class Figures:
    """What a model weighs: bytes and numbers of weights, and cache bytes per token in its storage dtype.

    `cache_per_token` is None where the config does not say enough to be sure.
    """

    weight_bytes: int
    parameters: int
    layers: int | None
    cache_per_token: int | None


@dataclass(frozen=True)
class Explored:
    """A source, its figures, its parts, and what came of each trick on its own, none of it proven yet."""

    source: Source
    architecture: str
    figures: Figures
    parts: tuple[Part, ...]
    looks: tuple[Look, ...]


QUICK = ("flashnorm", "precompute")
"""Tricks that are looked at by tracing alone. The others try things out on a small model of the same depth,
which takes a few tenths of a second for each layer."""


def explore(model: str, token: str | bool | None = None, tricks: Sequence[str] = tuple(TRICKS)) -> Explored:
    """Look at `model` with each of `tricks`, written as in a recipe: a bare name has its default options.

    Raises:
        BadInput: there is no such model, it may not be read, it cannot be planned, or a trick is none.
    """
    from tricks import parse_trick, survey  # late: it brings torch

    wanted = [parse_trick(text) for text in tricks]
    source = resolve(model, token)
    checkpoint = read_headers(source, token)
    parts, looks = survey(checkpoint, wanted)
    named = next((look.plan.architecture for look in looks if look.plan), "")
    return Explored(source, named, figures(checkpoint), parts, tuple(looks))


def figures(checkpoint: Checkpoint) -> Figures:
    """The model's figures from config and headers."""
    config = checkpoint.config
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    return Figures(
        weight_bytes=checkpoint.weight_bytes,
        parameters=sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        layers=_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        cache_per_token=_cache_per_token(config),
    )


def _cache_per_token(config: Mapping[str, Any]) -> int | None:
    """Bytes of K and V per token where every layer attends to all tokens, else None."""
    if any(config.get(key) for key in ("sliding_window", "layer_types", "attn_layer_period", "kv_lora_rank")):
        return None
    layers = _number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _number(config, "num_attention_heads", "n_head", "n_heads")
    width = _number(config, "hidden_size", "n_embd", "d_model")
    if layers is None or heads is None or width is None:
        return None
    kv_heads = _number(config, "num_key_value_heads", "n_head_kv") or (
        1 if config.get("multi_query") else heads
    )
    head = _number(config, "head_dim") or width // heads
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return 2 * layers * kv_heads * head * _KEPT_DTYPES.get(dtype, 2)


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a whole number above zero."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
