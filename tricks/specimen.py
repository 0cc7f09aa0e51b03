"""A specimen: a small random model of the same class, run to see how the real one is connected.

Where wiring (see `wiring`) follows single operations without values, experiments on a specimen answer what
only values can: whether an output depends on the token alone, which channels of a projection are values, what
may be exchanged without the logits moving. What an experiment finds is a proposal; the plan's proof decides.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from tricks.float64 import float64_arithmetic
from tricks.model import Blueprint, build, spread_experts
from tricks.quiet import quiet
from tricks.small import DEPTHS, affordable, randomise, shrunk
from tricks.subject import Subject

TOKENS = 5
"""Length of the sequences that attention is tried with."""
_HEARD = "max_source_positions"

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


class NoSpecimen(Exception):
    """No small model of the class can be built and run; says so in words."""


def specimen(subject: Subject, whole_depth: bool = False, number: int = 0) -> nn.Module:
    """The specimen of a subject, in float64 on the CPU; the same object for the same arguments.

    Args:
        whole_depth: with as many layers as the subject has.
        number: how many that could be had to pass over; each is wider than the one before.

    Raises:
        NoSpecimen: there is none (left).
    """
    config = type(subject.model).__name__ + json.dumps(subject.config.to_dict(), sort_keys=True, default=str)
    key = (config, whole_depth, number)
    if key not in _CACHE:
        if len(_CACHE) > 3:
            _CACHE.clear()
        models = _grow(subject, whole_depth)
        found = next(islice(models, number, None), None)
        if found is None:
            raise NoSpecimen("no small model of its class could be built and run, so nothing is known of it")
        _CACHE[key] = found
    return _CACHE[key]


_CACHE: dict[tuple[str, bool, int], nn.Module] = {}
"""The last specimens: the tricks of one recipe ask one after the other."""


def _grow(subject: Subject, whole_depth: bool) -> Iterator[nn.Module]:
    depth = _depth(subject.config)
    for small in shrunk(Blueprint(type(subject.model).__name__, subject.config)):
        if whole_depth and _depth(small.config) != depth:
            continue
        # A class may refuse a size when it is built or only when it runs; the next may suit it.
        try:
            if hasattr(small.config, _HEARD):
                setattr(small.config, _HEARD, TOKENS)  # an encoder of features takes exactly as many
            if not affordable(build(small, "meta", torch.float32)):
                continue
            model = build(small, "cpu", torch.float64)
            randomise(model)
            spread_experts(model)
            run(model, torch.tensor([[3, 4, 5]]))
        except Exception:  # noqa: BLE001 - modelling code can fail in any way at an odd size
            continue
        yield model


def _depth(config: PretrainedConfig) -> dict[str, int]:
    """All layer counts of a configuration, encoder's and decoder's."""
    fields = config.get_text_config().to_dict()
    return {name: fields[name] for name in DEPTHS if isinstance(fields.get(name), int)}


def run(model: nn.Module, ids: torch.Tensor, hooks: dict[str, Hook] | None = None) -> torch.Tensor:
    """Logits (or hidden states, where a model gives none) [batch, tokens, ...] in float64.

    Args:
        ids: tokens [batch, tokens]; a model of encoder and decoder gets them on both sides, and one that
            hears gets the same features for each row.
        hooks: forward hooks by module path.
    """
    accepted = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {name: ids for name in ("input_ids", "decoder_input_ids") if name in accepted}
    if "input_ids" not in given:
        given["input_features"] = _features(model).expand(len(ids), -1, -1)
    if "use_cache" in accepted:
        given["use_cache"] = False
    with _hooked(model, hooks or {}), torch.no_grad(), float64_arithmetic(), quiet():
        out = model(**given)
    answer: torch.Tensor = out.logits if "logits" in out else out.last_hidden_state
    return answer


def _features(model: Any) -> torch.Tensor:
    """Features [1, channels, frames] of which an encoder makes TOKENS positions."""
    channels = int(model.config.num_mel_bins)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, 2 * TOKENS, generator=generator, dtype=torch.float64)


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Hook]) -> Iterator[None]:
    handles = [
        model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
        for path, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for float64's rounding; false where a value is not finite."""
    return bool(((a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1e-30)).item())
