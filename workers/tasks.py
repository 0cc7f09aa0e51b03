"""The Celery tasks: take the next job and run it, and bring lost jobs back."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from service.lanes import Queue
from service.queue import COMPARE, RECOVER, RUN, top_up
from workers.comparing import run_comparison
from workers.run import run_job
from workers.worker import Worker

log = logging.getLogger(__name__)


def add_tasks(app: Celery, worker: Worker) -> None:
    """Register the tasks on this worker's app."""

    @app.task(name=RUN, bind=True)
    def run(self: Any, job_id: str = "") -> None:
        queue = self.request.delivery_info.get("routing_key") or Queue.CPU.value
        attempt = worker.next_job(queue)
        if attempt is None and job_id:
            # A sender of an older release meant this very job.
            attempt = worker.this_job(job_id)
        if attempt is None:
            return
        run_job(attempt, worker)
        # Messages may have come and gone while a limit held jobs back: now one may run.
        top_up(app, worker.store)

    @app.task(name=COMPARE)
    def compare(comparison_id: str) -> None:
        run_comparison(worker, comparison_id)

    @app.task(name=RECOVER)
    def recover_jobs() -> None:
        recover(app, worker)


def recover(app: Celery, worker: Worker) -> list[str]:
    """Queue the jobs whose worker went silent, and call workers for all that wait.

    Returns:
        The ids of the reclaimed jobs.
    """
    reclaimed = worker.store.reclaim()
    for job_id in reclaimed:
        log.warning("job %s: its worker went silent", job_id)
    top_up(app, worker.store, no_gpu=not worker.registry.has(Queue.GPU))
    return reclaimed
