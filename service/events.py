"""What a job tells while it goes its way, as read back from its Redis stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEPT_EVENTS = 2000
"""About how many events a job's stream keeps; the oldest go first."""


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream: a new state, a new stage, progress within a stage, or a note.

    `id` is the stream's own and grows; `at` is in unix seconds; `unit`, `done` and `total` are those of a
    `Report`; `text` is a sentence for the user (why a job failed, what a stage found).
    """

    id: str
    at: float
    kind: str
    state: str | None = None
    stage: str | None = None
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The event as plain JSON types, without what it does not say."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_stream(entry: str, fields: Mapping[str, str]) -> Event:
        """Read one stream entry."""

        def number(name: str) -> int | None:
            return int(fields[name]) if name in fields else None

        return Event(
            id=entry,
            at=int(entry.partition("-")[0]) / 1000,
            kind=fields["kind"],
            state=fields.get("state"),
            stage=fields.get("stage"),
            unit=fields.get("unit"),
            done=number("done"),
            total=number("total"),
            text=fields.get("text"),
        )
