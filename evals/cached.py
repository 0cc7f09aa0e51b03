"""A cache of one's own, decoded through in the dtype in which it will be used.

What a narrower cache loses shows only there: in the wider type its rounding is not seen. The source, in the
same dtype and led over the same tokens through its own cache, is the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evals.generation import Continuations
from evals.logits import LogitComparison, LogitDifference
from evals.verdict import Check, Floor, loose_checks


@dataclass(frozen=True)
class Cached:
    """Both models in the storage dtype, against the source in the wider one, over the tokens it wrote.

    `same` of `steps` tokens are the best of the converted model too, `same_source` of the source in that
    dtype. `bytes` and `bytes_source` were held by the live caches at the end, of `tokens` tokens.
    """

    source: LogitDifference
    converted: LogitDifference
    steps: int
    same: int
    same_source: int
    tokens: int
    bytes: int
    bytes_source: int

    @staticmethod
    def of(wrote: Continuations, source: Continuations, converted: Continuations, dtype: str) -> Cached:
        """What two models led over `wrote` said, in `dtype`."""

        def compared(name: str, led: Continuations) -> LogitDifference:
            comparison = LogitComparison("source", f"{name} in {dtype}, cached")
            comparison.add(wrote.logits.flatten(0, 1), led.logits.flatten(0, 1))
            return comparison.result()

        return Cached(
            source=compared("source", source),
            converted=compared("converted", converted),
            steps=wrote.tokens.numel(),
            same=_same(wrote, converted),
            same_source=_same(wrote, source),
            tokens=converted.cached,
            bytes=converted.cache_bytes,
            bytes_source=source.cache_bytes,
        )

    def checks(self, floor: Floor) -> list[Check]:
        """The limits of a run whose own rounding is part of what is seen; the worst floor counts."""
        own = Floor.of([self.source])
        worst = Floor(*(max(getattr(own, name), getattr(floor, name)) for name in Floor.__dataclass_fields__))
        return loose_checks(worst, self.converted, "of cached decoding in the storage dtype")

    def lines(self, dtype: str) -> list[tuple[str, str]]:
        """The figures that matter, (name, value) in words for people."""
        divergences = f"{self.converted.divergence:.2e} (source {self.source.divergence:.2e})"
        return [
            (
                f"cached decoding in {dtype}",
                f"KL {divergences} nats/token over {self.steps} tokens; same best token "
                f"{self.same / self.steps:.2%} (source {self.same_source / self.steps:.2%})",
            ),
            (
                "live cache, measured",
                f"{self.bytes:,} of {self.bytes_source:,} bytes ({self.bytes / self.bytes_source:.1%}), "
                f"{self.tokens} tokens decoded",
            ),
        ]


def _same(wrote: Continuations, led: Continuations) -> int:
    return int(torch.eq(wrote.tokens, led.logits.argmax(-1)).sum())
