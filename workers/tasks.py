"""The Celery tasks: run one job, and bring lost jobs back."""

from __future__ import annotations

import threading

from celery import Celery

from service.jobs import JobStore
from service.queue import RECOVER, RUN, send
from service.settings import Settings
from workers.run import run_job

UNSENT_AFTER = 10.0  # seconds; a submit needs far less between record and message


def add_tasks(app: Celery, store: JobStore, settings: Settings, worker_stops: threading.Event) -> None:
    """Register the tasks on this worker's app."""

    @app.task(name=RUN)
    def run(job_id: str) -> None:
        run_job(job_id, store, settings, worker_stops)

    @app.task(name=RECOVER)
    def recover_jobs() -> None:
        recover(app, store)


def recover(app: Celery, store: JobStore, unsent_after: float = UNSENT_AFTER) -> list[str]:
    """Queue again: jobs whose worker went silent, and jobs whose message was never sent.

    Returns:
        Their ids.
    """
    reclaimed = store.reclaim()
    lost = [*reclaimed, *(job_id for job_id in store.unsent(unsent_after) if job_id not in reclaimed)]
    for job_id in lost:
        send(app, store, store.get(job_id))
    return lost
