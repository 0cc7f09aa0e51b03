"""How fast a job goes, from the progress events that it told."""

from __future__ import annotations

import time
from collections.abc import Sequence

from service.api import Service
from service.events import Event

WINDOW_S = 5.0


def recent(service: Service, job_id: str) -> list[Event]:
    """The events of the last few seconds: an event's id begins with its time in ms."""
    return service.events(job_id, after=str(int((time.time() - WINDOW_S) * 1000)))


def per_second(events: Sequence[Event]) -> float | None:
    """Units per second of the stage and unit of the last progress event, over the last few seconds.

    None while there are fewer than two such events, or the count did not grow.
    """
    told = [event for event in events if event.kind == "progress"]
    if not told:
        return None
    last = told[-1]
    same: list[Event] = []
    for event in reversed(told):
        if (event.stage, event.unit) != (last.stage, last.unit) or last.at - event.at > WINDOW_S:
            break
        same.append(event)
    first = same[-1]
    grown, passed = (last.done or 0) - (first.done or 0), last.at - first.at
    return grown / passed if grown > 0 and passed > 0 else None
