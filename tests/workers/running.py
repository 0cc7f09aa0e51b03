"""What tests of whole jobs share: what a fixture's type is, and doing something in the midst of a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from service.api import Service
from service.events import Event
from service.jobs import Job


class Runner(Protocol):
    """Runs a job here, as a worker does, and returns it as it is then."""

    def __call__(self, job: Job, stops: threading.Event | None = None) -> Job: ...


def on_event(
    service: Service, job: Job, wanted: Callable[[Event], bool], do: Callable[[], object]
) -> threading.Thread:
    """Do something as soon as the job tells a certain event."""

    def follow() -> None:
        after = "0"
        while True:
            for event in service.events(job.id, after, block_ms=1000):
                after = event.id
                if wanted(event):
                    do()
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


def in_verify(event: Event) -> bool:
    """Whether the job's child holds its weights."""
    return event.kind == "progress" and event.stage == "verify"
