"""Start a worker or beat: `python -m workers.main worker|beat`.

Workers run jobs in threads, and each job's work in a child process: never a forked pool, which a GPU's
libraries do not survive.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery import signals
from celery.beat import EmbeddedService

from service.api import Service
from service.jobs import JobStore
from service.queue import RECOVER_EVERY, WATCH, Queue, make_app
from service.redis_server import running_redis
from service.settings import Settings
from tricks import TricksmithError
from workers.tasks import add_tasks, recover
from workers.watch_tasks import add_watch_tasks

log = logging.getLogger(__name__)


def run_worker(
    settings: Settings, queues: Sequence[str] = tuple(Queue), concurrency: int | None = None
) -> int:
    """Work off `queues` until a signal says stop: running jobs then go back to the queue.

    Every worker also looks for lost jobs, so that one without beat beside it loses none either.

    Returns:
        The exit code.
    """
    settings = replace(settings, concurrency=concurrency or settings.concurrency)
    stops = threading.Event()
    with running_redis(settings) as url:
        store = JobStore(url)
        app = make_app(url)
        add_tasks(app, store, settings, stops)

        def stopping(**_: Any) -> None:
            stops.set()

        def look_after_lost_jobs() -> None:
            while not stops.wait(min(RECOVER_EVERY, settings.lease)):
                try:
                    recover(app, store)
                except Exception:
                    log.exception("looking for lost jobs failed; it is tried again")

        signals.worker_shutting_down.connect(stopping, weak=False)
        recover(app, store)
        threading.Thread(target=look_after_lost_jobs, name="recover", daemon=True).start()
        worker = app.Worker(
            pool="threads",
            concurrency=settings.concurrency,
            queues=list(queues),
            loglevel="INFO",
            without_gossip=True,
            without_mingle=True,
        )
        try:
            worker.start()
        finally:
            stops.set()
            signals.worker_shutting_down.disconnect(stopping)
            store.close()
        return int(worker.exitcode or 0)


def run_beat(settings: Settings) -> int:
    """Send the periodic tasks and follow the watches, until a signal says stop.

    Both in one process, so that no poll waits behind a job. It answers no ping: it is not a worker for jobs.

    Returns:
        The exit code.
    """
    with running_redis(settings) as url, Service(replace(settings, redis_url=url)) as service:
        app = make_app(url)
        app.conf.worker_enable_remote_control = False
        add_watch_tasks(app, service)
        schedule = settings.data / "beat"
        schedule.mkdir(parents=True, exist_ok=True, mode=0o700)
        beat = EmbeddedService(app, thread=True, schedule_filename=str(schedule / "schedule"))
        beat.start()
        worker = app.Worker(
            pool="threads",
            concurrency=1,
            queues=[WATCH],
            loglevel="INFO",
            without_gossip=True,
            without_mingle=True,
        )
        try:
            worker.start()
        finally:
            beat.stop()
        return int(worker.exitcode or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m workers.main", description=__doc__)
    parser.add_argument("role", choices=("worker", "beat"))
    parser.add_argument("--data", type=Path, help="data folder (default: TRICKSMITH_DATA)")
    parser.add_argument("--queues", default=",".join(Queue), help="queues to work off, with commas between")
    parser.add_argument("--concurrency", type=int, help="jobs at a time")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_env(data=options.data)
        if options.role == "beat":
            return run_beat(settings)
        return run_worker(settings, options.queues.split(","), options.concurrency)
    except TricksmithError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
