"""A small model of the same class: every width divided by one factor, so that all relations between widths
(heads times head dim, latent ranks, fused sizes) stay true, with fewer layers, experts and tokens."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from tricks.gains import is_candidate

_WIDTH = re.compile(
    r"(^|_)(hidden_size|intermediate_size|size_per_head|head_dim|head_size|dim|rank|n_embd|n_inner|inner_dim|d_model"
    r"|d_ff|d_kv|ffn_dim|width|embedding_size|hidden_dim|expand_dim|lru_width|mlp_dim|ssm_size|d_inner|ffn_size"
    r"|hidden_sizes?|ffn_hidden_size|rotary_dim|per_layer_input|embed_dim)($|_)"
)
_NO_WIDTH = re.compile(
    r"vocab|num_|kernel|chunk|patch|image|window|conv|position|_id$|_factor|multiple|layers|n_heads"
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
_VOCAB = 128
_FEW_EXPERTS = 16
_MOST_PARAMETERS = 60_000_000


def shrunk_configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Smaller and smaller-risk versions of `config`, the smallest first, the full depth last."""
    fields = config.to_dict()
    widths = [value for _, value in _widths(fields)]
    divisor = math.gcd(*widths) if widths else 1
    power = divisor & -divisor
    layers = max((fields[key] for key in _LAYERS if isinstance(fields.get(key), int)), default=1)
    depths = list(dict.fromkeys(min(depth, layers) for depth in (4, 8, layers)))
    for depth in depths:
        for experts in (_FEW_EXPERTS, None):
            step = min(power, 64)
            while step >= 1:
                # A config class may refuse a size; the next may suit it.
                with suppress(Exception):
                    yield _shrunk(fields, step, depth, layers, experts)
                step //= 2
            if experts is not None and not any(fields.get(key) for key in _EXPERTS):
                break


def _widths(fields: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in fields.items():
        if _NO_WIDTH.search(key):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and _WIDTH.search(key):
            yield key, value
        elif (
            isinstance(value, list)
            and value
            and _WIDTH.search(key)
            and all(isinstance(v, int) for v in value)
        ):
            for entry in value:
                yield key, entry


def _shrunk(
    fields: dict[str, Any], divisor: int, depth: int, layers: int, experts: int | None
) -> PretrainedConfig:
    small = copy.deepcopy(fields)
    for key, _ in list(_widths(fields)):
        value = fields[key]
        small[key] = [v // divisor for v in value] if isinstance(value, list) else value // divisor
    for key, value in fields.items():
        if key in _LAYERS:
            small[key] = min(value, depth)
        elif isinstance(value, list) and len(value) == layers and layers > depth:
            small[key] = value[:depth]
        elif key in _EXPERTS and isinstance(value, int) and experts is not None:
            small[key] = min(value, experts)
        elif key.startswith("vocab_size") and isinstance(value, int):
            small[key] = min(value, _VOCAB)
        elif key.endswith("token_id"):
            small[key] = _token(value)
    model_type = small.pop("model_type")
    small.pop("dtype", None)
    return AutoConfig.for_model(model_type, **small)


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
