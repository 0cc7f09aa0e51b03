"""Perplexity on a text, paired token by token."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from evals.statistics import dependent_mean, tost


@dataclass(frozen=True)
class Perplexity:
    """Both models' perplexity over the same scored tokens.

    `difference` is converted minus source in nats per token; `low` and `high` bound it with 95 % confidence,
    by a block bootstrap with blocks of `block` tokens, for the losses of neighbours depend on each other;
    `detectable` is the true difference that this many tokens would have shown four times in five.
    `equivalence` is the p value of the TOST test that it lies within ±`margin`. `largest` is the largest
    absolute difference on one token. The figures per byte and per word count the text that was scored, words
    as lm-evaluation-harness's `wikitext` does.
    """

    tokens: int
    source: float
    converted: float
    difference: float
    standard_error: float
    low: float
    high: float
    block: int
    detectable: float
    margin: float
    equivalence: float
    largest: float
    bytes: int
    words: int
    source_bits_per_byte: float
    converted_bits_per_byte: float
    source_word_perplexity: float
    converted_word_perplexity: float


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, float64 `(positions,)` on the CPU, of logits `(positions, values)`."""
    parts = [
        torch.nn.functional.cross_entropy(rows.double(), wanted, reduction="none")
        for rows, wanted in zip(logits.split(64), targets.to(logits.device).split(64), strict=True)
    ]
    return torch.cat(parts).cpu()


def paired_perplexity(
    source: torch.Tensor, converted: torch.Tensor, text: str, margin: float = 0.01
) -> Perplexity:
    """Join two models' losses `(tokens,)` on the same tokens, which spell `text`."""
    paired = converted - source
    estimate, block = dependent_mean(paired.numpy())
    size, words = len(text.encode("utf-8", errors="replace")), len(re.split(r"\s+", text))
    bits = [float(losses.sum()) / math.log(2) / max(size, 1) for losses in (source, converted)]
    per_word = [_exp(float(losses.sum()) / words) for losses in (source, converted)]
    return Perplexity(
        tokens=len(paired),
        source=_exp(float(source.mean())),
        converted=_exp(float(converted.mean())),
        difference=estimate.mean,
        standard_error=estimate.error,
        low=estimate.low,
        high=estimate.high,
        block=block,
        detectable=estimate.detectable,
        margin=margin,
        equivalence=tost(estimate, margin) if len(paired) > 1 else math.nan,
        largest=float(paired.abs().max()),
        bytes=size,
        words=words,
        source_bits_per_byte=bits[0],
        converted_bits_per_byte=bits[1],
        source_word_perplexity=per_word[0],
        converted_word_perplexity=per_word[1],
    )


def chunk_perplexity(losses: list[torch.Tensor]) -> float:
    """Perplexity as `transformer-tricks` gives it: every chunk counts the same, however long it is."""
    return _exp(float(torch.stack([chunk.mean() for chunk in losses]).mean()))


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
