"""A plan: which tensors a recipe changes and how, and for each place that does not fit, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tricks.checkpoint import Checkpoint
from tricks.progress import Report, silent
from tricks.recipe import Trick, parse_trick


@dataclass(frozen=True)
class Place:
    """One place of the model that a trick looked at."""

    trick: str
    where: str
    fits: bool
    detail: str


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. JSON in and out, so that it can cross process borders."""

    model: str
    architecture: str
    tricks: tuple[Trick, ...]
    places: tuple[Place, ...]
    savings: dict[str, int | float] = field(default_factory=dict)
    proof: float | None = None
    lossless: bool = True

    @property
    def fits(self) -> bool:
        """Whether there is anything to convert."""
        return any(place.fits for place in self.places)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        raise NotImplementedError

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        raise NotImplementedError


def make_plan(checkpoint: Checkpoint, tricks: Sequence[Trick], report: Report = silent) -> Plan:
    """Plan `tricks` for a checkpoint from its config and headers alone."""
    raise NotImplementedError
