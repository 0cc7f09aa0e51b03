"""What all jobs of one worker process share: the store, the fork server, the disk, the GPUs."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Self

import psutil

from service.cache import SourceCache
from service.jobs import Job, JobStore, NotOurs
from service.lanes import Queue, in_order, large_places
from service.registry import About, Registry
from service.settings import Settings
from service.tokens import Vault
from tricks import BadInput
from workers.forks import Forks
from workers.gpus import Gpus, visible_gpus
from workers.process import Allowance

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds that one question to Redis may take; what is important is asked again


@dataclass(frozen=True)
class Attempt:
    """One attempt at one job; `owner` is the word that says so to the store."""

    job: Job
    owner: str


class Worker:
    """One worker process; a context manager."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        queues: Sequence[str] = tuple(Queue),
        stops: threading.Event | None = None,
        forks: Forks | None = None,
    ) -> None:
        """`forks` is used where given, and left running; otherwise the worker starts its own fork server."""
        self.settings = settings
        self.queues = tuple(queues)
        self.stops = stops or threading.Event()
        self.store = JobStore(url, PATIENCE)
        self.registry = Registry(url)
        self.vault = Vault(url, settings)
        self.cache = SourceCache(settings.sources, settings.cache)
        self.gpus = Gpus(settings.gpu_locks, visible_gpus() if Queue.GPU in self.queues else ())
        self.id = f"{settings.host}-{os.getpid()}-{secrets.token_hex(2)}"
        self._stack = ExitStack()
        self._turn = 0
        self._running: set[str] = set()
        self._started = time.time()
        settings.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.forks = forks or self._stack.enter_context(Forks(settings.data / "forks.log"))

    def __enter__(self) -> Self:
        self._stack.callback(self.store.close)
        self._stack.callback(self.registry.close)
        self._stack.callback(self.vault.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def also(self, context: AbstractContextManager[Any]) -> None:
        """Hold something open for as long as this worker lives."""
        self._stack.enter_context(context)

    def next_job(self, queue: str) -> Attempt | None:
        """Take the job that is next in this queue, if one may run now."""
        queues = [queue]
        if queue == Queue.CPU and not self.registry.has(Queue.GPU):
            queues.append(Queue.GPU)  # its workers left: better slowly than not at all
        self._turn += 1
        owner = secrets.token_hex(8)
        job = self.store.take(
            owner,
            self.settings.lease,
            in_order(queues, self._turn),
            worker=self.id,
            user_running=self.settings.limits.user_running,
            large=large_places(self.registry.places(tuple(queues))),
        )
        return None if job is None else Attempt(job, owner)

    def this_job(self, job_id: str) -> Attempt | None:
        """Take this very job, if it may run now."""
        owner = secrets.token_hex(8)
        try:
            return Attempt(self.store.begin(job_id, owner, self.settings.lease, self.id), owner)
        except (NotOurs, BadInput) as error:
            log.info("job %s: not run: %s", job_id, error)
            return None

    def runs(self, job_id: str, *, now: bool) -> None:
        """A job begins or ends here."""
        (self._running.add if now else self._running.discard)(job_id)

    @property
    def running(self) -> frozenset[str]:
        """The jobs that run here."""
        return frozenset(self._running)

    @property
    def memory(self) -> int:
        """Bytes of memory that one job's child may take."""
        return self.settings.memory or int(psutil.virtual_memory().total * 0.9 / self.settings.concurrency)

    def allowance(self, file: int, env: dict[str, str]) -> Allowance:
        """What one job's child may use; `file`: bytes of its largest file."""
        places = self.settings.concurrency
        chosen = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(chosen) if chosen.isdecimal() else (os.cpu_count() or 1) // places
        return Allowance(memory=self.memory, file=file, threads=max(1, threads), env=env)

    def about(self) -> About:
        """What this worker tells of itself."""
        return About(
            id=self.id,
            host=self.settings.host,
            pid=os.getpid(),
            queues=self.queues,
            places=self.settings.concurrency,
            version=_version(),
            started=self._started,
            at=time.time(),
            running=len(self._running),
            gpus=len(self.gpus.names),
            gpus_busy=self.gpus.busy,
            disk_free=shutil.disk_usage(self.settings.work).free,
            cache_bytes=self.cache.used_bytes(),
        )


def _version() -> str:
    try:
        return version("tricksmith")
    except PackageNotFoundError:
        return "unknown"
