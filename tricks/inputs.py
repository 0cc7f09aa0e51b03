"""What to feed a model to see it run: token ids, and audio features where a model hears."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BATCH, TOKENS, DECODED = 3, 7, 5
"""Sizes that no model dimension equals, so that no axis is taken for another."""


def sample_inputs(model: nn.Module, seed: int | None = None) -> Iterator[dict[str, Any]]:
    """Keyword arguments for `model.forward`, the likeliest first; a model takes one of them.

    Args:
        seed: for random token ids and features; None gives zeros, on the model's device.
    """
    accepted = inspect.signature(model.forward).parameters
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    def ids(count: int) -> torch.Tensor:
        if generator is None:
            return torch.zeros((BATCH, count), dtype=torch.long, device=device)
        return torch.randint(0, _vocabulary(model), (BATCH, count), generator=generator).to(device)

    def features(*shape: int) -> torch.Tensor:
        if generator is None:
            return torch.zeros((BATCH, *shape), device=device, dtype=dtype)
        return torch.randn((BATCH, *shape), generator=generator).to(device, dtype)

    common: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "decoder_input_ids" in accepted:
        common["decoder_input_ids"] = ids(DECODED)
    if "input_ids" in accepted:
        if "encoder_hidden_states" in accepted and "decoder_input_ids" not in accepted:
            # A decoder by itself: the layers that read an encoder's output run only where there is one.
            yield {
                "input_ids": ids(TOKENS),
                "encoder_hidden_states": features(DECODED, _width(model)),
                **common,
            }
        yield {"input_ids": ids(TOKENS), **common}
    elif "input_features" in accepted:
        for shape in _feature_shapes(model.config):
            yield {"input_features": features(*shape), **common}
    elif "input_values" in accepted:
        yield {"input_values": features(4000), **common}


def _width(model: Any) -> int:
    other = getattr(model.config, "cross_attention_hidden_size", None)
    return int(other or model.config.get_text_config().hidden_size)


def _vocabulary(model: Any) -> int:
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    rows = 100 if embedding is None else int(embedding.shape[0])
    return min(rows, size) if isinstance(size, int) else rows


def _feature_shapes(config: Any) -> Iterator[tuple[int, int]]:
    channels: int = getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", 80))
    # Two feature frames make one position of an encoder with learned positions.
    frames = 2 * int(getattr(config, "max_source_positions", 100))
    yield channels, frames
    yield min(frames, 200), channels
