"""Decode latency before and after the other tricks, at real geometries with random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.clock import BUDGET, milliseconds
from benchmarks.gpu.generate import measure, unmasked
from benchmarks.gpu.geometry import DEVICE, GEMMA_7B, LLAMA_7B, PHI3_MINI, converted, skipless, source
from tricks.shipped.modeling_approximate import install

STATE = {"window": 512, "sinks": 4, "parts": 1, "coefficients": [1.0, 1.0]}
"""What a conversion by `approximate:window=512,degree=1,poly=taylor` writes into the configuration."""
CASES: list[tuple[str, tuple[str, dict[str, Any]], str]] = [
    ("Llama-2-7B", LLAMA_7B, "precompute"),
    ("Llama-2-7B", LLAMA_7B, "matshrink"),
    ("Llama-2-7B", LLAMA_7B, "flashnorm:form=defer"),
    ("Llama-2-7B", LLAMA_7B, "flashnorm:form=strict"),
    ("CodeGemma-7B", GEMMA_7B, "matshrink"),
    ("Phi-3-mini-128k", PHI3_MINI, "flashnorm:form=defer"),
]
_POINTS = [(1, 2048), (16, 2048)]
_LONG = [(1, 2048), (1, 32768), (8, 8192)]
_SECONDS = 15
"""What a model may take to be made and planned; a part stops where less is left."""

Latency = Callable[[PreTrainedModel, int, int], float]


@torch.no_grad()
def live(model: PreTrainedModel, batch: int, context: int) -> float:
    """Milliseconds of a step after a prompt of `context` tokens, in the model's own growing cache.

    Inside a CUDA graph, whose replays repeat one step.
    """
    ids = torch.randint(5, 1000, (batch, context), device=DEVICE)
    cache = model(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
    where = torch.full((batch, 1), context - 1, device=DEVICE)

    def step() -> None:
        with unmasked(model):
            model(input_ids=ids[:, -1:], position_ids=where, past_key_values=cache, use_cache=True)

    return milliseconds(step)


def step_ms(model: PreTrainedModel, batch: int, context: int) -> float:
    """Milliseconds of a step in a full static cache."""
    took: float = measure(model, batch, context)["step_ms"]
    return took


def both(
    name: str,
    trick: str,
    models: tuple[Callable[[], PreTrainedModel], Callable[[], PreTrainedModel]],
    points: list[tuple[int, int]],
    latency: Latency,
    known: dict[tuple[int, int], float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of one trick; `known`: what the source was measured at already, filled where it is empty."""
    before = {} if known is None else known
    try:
        for make in models:
            if make is models[0] and all(point in before for point in points):
                continue
            model = make()
            for batch, context in points:
                took = latency(model, batch, context)
                if make is models[0]:
                    before[batch, context] = took
                    continue
                old = before[batch, context]
                sizes = {"batch": batch, "context": context}
                spans = {"before_ms": old, "after_ms": took, "speedup": old / took}
                print(f"{name} {trick} {batch} x {context}: {old:.2f} -> {took:.2f} ms", flush=True)
                yield {"model": name, "trick": trick, **sizes, **spans}
            del model
            _clean()
    except Exception as error:  # noqa: BLE001 - what does not fit, or no graph takes, is a row too
        _clean()
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        print(f"{name} {trick}: {why}", flush=True)
        yield {"model": name, "trick": trick, "refused": why}


def approximate(geometry: tuple[str, dict[str, Any]]) -> PreTrainedModel:
    """The source with its attention and its cache exchanged, as the shipped code does when it loads."""
    model = source(*geometry)
    install(model, STATE)
    return model


def run() -> Iterator[dict[str, Any]]:
    """A step before and after each trick, source and converted in one run."""
    if BUDGET.left() > _SECONDS:
        whole, merged = (lambda: skipless(None, LLAMA_7B[1])), (lambda: skipless("q", LLAMA_7B[1]))
        yield from both("skipless, Llama-2-7B's sizes", "skipless", (whole, merged), _POINTS, live)
    if BUDGET.left() > _SECONDS:
        name = "approximate:window=512,degree=1,poly=taylor"
        stock, state = (lambda: source(*LLAMA_7B)), (lambda: approximate(LLAMA_7B))
        yield from both("Llama-2-7B", name, (stock, state), _LONG, live)
    known: dict[str, dict[tuple[int, int], float]] = {}
    for name, geometry, trick in CASES:
        if BUDGET.left() < _SECONDS:
            return
        yield from case(name, geometry, trick, _POINTS, known.setdefault(name, {}))


def case(
    name: str,
    geometry: tuple[str, dict[str, Any]],
    trick: str,
    points: list[tuple[int, int]],
    known: dict[tuple[int, int], float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a trick that is planned and loaded as any conversion is, decoding in a static cache."""
    models = (lambda: source(*geometry)), (lambda: converted(*geometry, trick)[0])
    yield from both(name, trick, models, points, step_ms, known)


def _clean() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
