"""A thread beside each running job: it renews the lease and learns that the job should stop."""

from __future__ import annotations

import logging
import threading
import time
from enum import Enum
from types import TracebackType
from typing import Self

import redis

from service.jobs import JobStore, NotOurs

LOOK_EVERY = 0.25  # seconds between two looks at the cancel flag

log = logging.getLogger(__name__)


class Stop(Enum):
    """Why a running job should stop."""

    CANCELLED = "somebody cancelled it"
    WORKER_STOPS = "the worker stops"
    LOST = "another worker has it"
    TIME = "it took too long"


class Watch:
    """Beats for one job while the block runs; `stop` says whether, and why, to stop.

    While Redis does not answer the work goes on: without Redis nobody can say whose the job is. What cannot
    be taken back waits at `check` until Redis has said that the job still is ours.
    """

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        owner: str,
        lease: float,
        worker_stops: threading.Event,
        time_limit: float = float("inf"),
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._owner = owner
        self._lease = lease
        self._worker_stops = worker_stops
        self._deadline = time.monotonic() + time_limit
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
        if self._found is None and time.monotonic() > self._deadline:
            return Stop.TIME
        return self._found

    def check(self) -> Stop | None:
        """Ask Redis now, for as long as it takes, whether the job still is ours; why to stop, or None."""
        while self.stop is None:
            if self._look():
                break
            time.sleep(LOOK_EVERY)
        return self.stop

    def _look(self) -> bool:
        """Beat once; whether Redis answered."""
        try:
            if self._store.beat(self._job_id, self._owner, self._lease):
                self._found = Stop.CANCELLED
        except NotOurs:
            self._found = Stop.LOST
        except redis.RedisError:
            return False
        return True

    def _beat(self) -> None:
        answered = True
        while self._found is not Stop.LOST and not self._over.wait(min(LOOK_EVERY, self._lease / 4)):
            if self._look() is not answered:
                answered = not answered
                log.warning("Redis answers again" if answered else "Redis does not answer; the work goes on")
