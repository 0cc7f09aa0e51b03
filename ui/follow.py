"""Following a job on the terminal until it has finished."""

from __future__ import annotations

from service.api import Service
from service.jobs import Job, State
from ui.progress import Progress

_BLOCK_MS = 1000


def follow(service: Service, job_id: str, progress: Progress) -> Job:
    """Show what the job tells, from its first event on; returns it when it is final."""
    after = "0"
    while True:
        # The record before the events: an end that is seen here has all its events in the stream already.
        job = service.job(job_id)
        events = service.events(job_id, after=after, block_ms=0 if job.state.final else _BLOCK_MS)
        for event in events:
            after = event.id
            if event.stage:
                progress.stage(event.stage)
            if event.kind == "progress" and event.unit is not None:
                progress(event.unit, event.done or 0, event.total or 0)
        if job.state.final:
            progress.end("✓" if job.state is State.PUBLISHED else "✕")
            return job
