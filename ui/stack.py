"""What a command needs running beside it: Redis, and workers in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from service.api import Service
from service.queue import make_app
from service.redis_server import running_redis
from service.registry import Registry
from service.settings import Settings

_STOP_S = 20.0
_PING_S = 1.0


@contextmanager
def queue_service() -> Iterator[tuple[Service, Settings]]:
    """A service on a Redis that answers, and the settings that name this Redis."""
    settings = Settings.from_env()
    with running_redis(settings) as url:
        settings = replace(settings, redis_url=url)
        yield Service(settings), settings


@contextmanager
def announced(settings: Settings, workers: int) -> Iterator[None]:
    """Say before the block begins that it will start `workers`: whoever submits meanwhile is told so."""
    if workers:
        with closing(Registry(settings.redis_url or "")) as registry:
            registry.announce()
    yield


def are_starting(settings: Settings) -> bool:
    """Whether a worker starts on this Redis that does not take jobs yet."""
    with closing(Registry(settings.redis_url or "")) as registry:
        return registry.starting()


def await_workers(settings: Settings) -> bool:
    """Wait while a worker starts; whether one answers then."""
    while are_starting(settings):
        time.sleep(0.5)
    return has_workers(settings)


def has_workers(settings: Settings) -> bool:
    """Whether any worker answers on this Redis."""
    app = make_app(settings.redis_url or "")
    try:
        return bool(app.control.ping(timeout=_PING_S, limit=1))
    finally:
        app.close()


def log_file(settings: Settings) -> Path:
    """Where the processes of this data folder write what they do."""
    return settings.data / "worker.log"


@contextmanager
def processes(
    settings: Settings,
    roles: Sequence[str] = ("worker",),
    *,
    aloud: bool = False,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:
    """Run one process per role ("worker" or "beat") as long as the block runs; they write to `log_file`,
    or, `aloud`, where this process writes. `more` goes to their environment.

    Each holds the data folder's Redis for itself, so a worker outlives a killed command's Redis no worse
    than any other user of it.
    """
    with log_file(settings).open("ab") as log:
        running = [_start(role, settings, None if aloud else log.fileno(), more) for role in roles]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            _reap(process)


def _start(
    role: str, settings: Settings, log: int | None, more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "workers.main", role, "--data", str(settings.data), "--stop-with-stdin"],
        env={**os.environ, **more},
        # It stops when this pipe closes: with this command, however that ends.
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        # Ctrl-C is for the command, which then asks its processes to stop.
        start_new_session=True,
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
