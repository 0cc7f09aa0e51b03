"""Start a worker or beat: `python -m workers.main worker|beat`.

Workers run jobs in threads, and each job's work in a child process: never a forked pool, which a GPU's
libraries do not survive.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from celery import Celery, signals
from celery.beat import EmbeddedService

from service.api import Service
from service.health import Health, served
from service.lanes import Queue
from service.logs import set_up_logs
from service.queue import RECOVER_EVERY, WATCH, compare_queue, make_app, top_up
from service.redis_server import running_redis
from service.registry import SEEN_FOR
from service.retention import retire
from service.settings import Settings
from tricks import TricksmithError
from workers.tasks import add_tasks, recover
from workers.watch_tasks import add_watch_tasks
from workers.worker import Worker
from workers.workspace import sweep

log = logging.getLogger(__name__)

SWEEP_EVERY = 300.0  # seconds between two looks for what can be thrown away


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
    with running_redis(settings) as url, Worker(url, settings, queues, stops) as worker:
        worker.registry.announce()
        worker.forks.wait_until_ready()  # no job waits here while another worker could have it
        app = make_app(url)
        add_tasks(app, worker)

        def stopping(**_: Any) -> None:
            stops.set()

        signals.worker_shutting_down.connect(stopping, weak=False)
        keeper = threading.Thread(target=_keep_house, args=[app, worker], name="house", daemon=True)
        keeper.start()
        if settings.metrics_port:
            health = Health(worker.store, worker.registry)
            worker.also(served(health, settings.metrics_port))
        celery = app.Worker(
            pool="threads",
            concurrency=settings.concurrency,
            queues=[*queues, *map(compare_queue, queues)],
            hostname=f"{worker.id}@%h",
            loglevel="INFO",
            without_gossip=True,
            without_mingle=True,
        )
        try:
            celery.start()
        finally:
            stops.set()
            signals.worker_shutting_down.disconnect(stopping)
            keeper.join(10)
            with suppress(redis.RedisError):
                worker.registry.leave(worker.id)
                top_up(app, worker.store)  # others are called for the jobs that were given back
            app.close()
        return int(celery.exitcode or 0)


def _keep_house(app: Celery, worker: Worker) -> None:
    """Until the worker stops: say that it lives, look for lost jobs, throw away what nobody needs."""
    turns = (
        _Turn(SEEN_FOR / 3, lambda: worker.registry.say(worker.about())),
        _Turn(min(RECOVER_EVERY, worker.settings.lease), lambda: recover(app, worker)),
        _Turn(SWEEP_EVERY, lambda: clean(worker)),
    )
    while True:
        for turn in turns:
            turn.take()
        if worker.stops.wait(0.5):
            return


class _Turn:
    """Something to do every so many seconds, whatever became of it the last time."""

    def __init__(self, every: float, do: Callable[[], object]) -> None:
        self._every, self._do = every, do
        self._next = 0.0

    def take(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        try:
            self._do()
        except redis.RedisError as error:
            log.warning("Redis does not answer (%s); tried again soon", type(error).__name__)
        except Exception:
            log.exception("keeping house failed; tried again soon")


def clean(worker: Worker) -> None:
    """Throw away work folders that nobody needs, and what finished jobs no longer keep."""
    settings = worker.settings
    for name in sweep(settings.work, worker.store, settings.failed_work):
        log.info("removed the work folder %s", name)
    retire(worker.store, details=settings.details, records=settings.records)


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


def stop_with_stdin() -> None:
    """Stop this process, as SIGTERM does, when whoever started it is gone, however that ended."""

    def wait() -> None:
        # Not `sys.stdin`: its lock, held by a thread that waits, is fatal where the interpreter ends first.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m workers.main", description=__doc__)
    parser.add_argument("role", choices=("worker", "beat"))
    parser.add_argument("--data", type=Path, help="data folder (default: TRICKSMITH_DATA)")
    parser.add_argument("--queues", default=",".join(Queue), help="queues to work off, with commas between")
    parser.add_argument("--concurrency", type=int, help="jobs at a time")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(argv)
    try:
        settings = Settings.from_env(data=options.data)
        set_up_logs(as_json=settings.json_logs)
        if options.stop_with_stdin:
            stop_with_stdin()
        if options.role == "beat":
            return run_beat(settings)
        return run_worker(settings, options.queues.split(","), options.concurrency)
    except TricksmithError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
