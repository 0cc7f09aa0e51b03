"""A specimen: a small random model of the same class, run to see how the real one is connected.

Where wiring (see `wiring`) follows single operations without values, experiments on a specimen answer what
only values can: whether an output depends on the token alone, which channels of a projection are values, what
may be exchanged without the logits moving. What an experiment finds is a proposal; the plan's proof decides.
"""

from __future__ import annotations

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
from tricks.small import affordable, randomise, shrunk
from tricks.subject import Subject

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
        if whole_depth and _depth(small.config) < depth:
            continue
        # A class may refuse a size when it is built or only when it runs; the next may suit it.
        try:
            if not affordable(build(small, "meta", torch.float32)):
                continue
            model = build(small, "cpu", torch.float64)
            randomise(model)
            spread_experts(model)
            run(model, torch.tensor([[3, 4, 5]]))
        except Exception:  # noqa: BLE001 - modelling code can fail in any way at an odd size
            continue
        yield model


def _depth(config: PretrainedConfig) -> int:
    return int(getattr(config.get_text_config(), "num_hidden_layers", 0))


def run(model: nn.Module, ids: torch.Tensor, hooks: dict[str, Hook] | None = None) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] in float64; `hooks` are forward hooks by module path."""
    with _hooked(model, hooks or {}), torch.no_grad(), float64_arithmetic(), quiet():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


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
