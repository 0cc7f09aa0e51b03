"""A thread beside each running job: it renews the lease and learns that the job should stop."""

from __future__ import annotations

import threading
from enum import Enum
from types import TracebackType
from typing import Self

import redis

from service.jobs import JobStore, NotOurs

LOOK_EVERY = 0.25  # seconds between two looks at the cancel flag


class Stop(Enum):
    """Why a running job should stop."""

    CANCELLED = "somebody cancelled it"
    WORKER_STOPS = "the worker stops"
    LOST = "another worker has it"


class Watch:
    """Beats for one job while the block runs; `stop` says whether, and why, to stop."""

    def __init__(
        self, store: JobStore, job_id: str, owner: str, lease: float, worker_stops: threading.Event
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._owner = owner
        self._lease = lease
        self._worker_stops = worker_stops
        self._found: Stop | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"watch-{job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def stop(self) -> Stop | None:
        """Why to stop, or None: go on."""
        if self._found is None and self._worker_stops.is_set():
            return Stop.WORKER_STOPS
        return self._found

    def _beat(self) -> None:
        while not self._over.wait(min(LOOK_EVERY, self._lease / 4)):
            try:
                if self._store.beat(self._job_id, self._owner, self._lease):
                    self._found = Stop.CANCELLED
            except NotOurs:
                self._found = Stop.LOST
                return
            except redis.RedisError:
                # Redis is away for longer than the client itself waits: the lease tells who goes on.
                continue
