"""Perplexity on held-out text, paired token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Perplexity:
    """Both models' perplexity over the same scored tokens.

    `difference` is converted minus source in nats per token, `standard_error` that of its mean with the
    tokens taken as independent, `largest` the largest absolute difference on one token.
    """

    tokens: int
    source: float
    converted: float
    difference: float
    standard_error: float
    largest: float


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, float64 `(positions,)`, from logits `(positions, vocabulary)`."""
    parts = [
        torch.nn.functional.cross_entropy(rows.double(), wanted, reduction="none")
        for rows, wanted in zip(logits.split(64), targets.split(64), strict=True)
    ]
    return torch.cat(parts)


def paired_perplexity(source: torch.Tensor, converted: torch.Tensor) -> Perplexity:
    """Join two models' losses `(tokens,)` on the same tokens."""
    paired = converted - source
    deviation = float(paired.std(unbiased=True)) if len(paired) > 1 else math.nan
    return Perplexity(
        tokens=len(paired),
        source=_exp(float(source.mean())),
        converted=_exp(float(converted.mean())),
        difference=float(paired.mean()),
        standard_error=deviation / math.sqrt(len(paired)),
        largest=float(paired.abs().max()),
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
