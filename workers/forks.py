"""The worker's end of the fork server: start it, ask it for children, start it anew when it died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tricks import TricksmithError
from workers.environment import child_environment

START_TIMEOUT = 180.0  # seconds; the imports take a few, on a machine that has nothing in memory many


class NoChild(TricksmithError):
    """No child process could be started."""


@dataclass
class Forked:
    """One child: its pid, our ends of its input and output, and where its exit code will be told."""

    pid: int
    stdin: int
    stdout: int
    code: int

    def wait(self, timeout: float) -> int | None:
        """Its exit code (negative: the signal that ended it), or None where it still runs after `timeout`.

        Raises:
            ChildProcessError: nobody will ever know: the fork server died.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self.code, selectors.EVENT_READ)
            if not selector.select(max(0.0, timeout)):
                return None
        text = os.read(self.code, 32)
        if not text:
            raise ChildProcessError("the fork server died")
        return int(text)

    def close(self) -> None:
        """Close our ends; the child ends when its input does."""
        for fd in (self.stdin, self.stdout, self.code):
            with suppress(OSError):
                os.close(fd)


class Forks:
    """A fork server that is there when a child is asked for; a context manager, safe between threads."""

    def __init__(self, log: Path) -> None:
        """Start it (its imports go on while this process does something else); its words go to `log`."""
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready = False
        with self._lock:
            self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """The fork server's pid."""
        return self._process.pid if self._process else None

    def wait_until_ready(self) -> None:
        """Wait until a child can be had at once.

        Raises:
            NoChild: the fork server does not start.
        """
        with self._lock:
            try:
                self._wait_until_ready()
            except OSError as error:
                raise NoChild(f"the fork server does not start ({error}); see {self._log}") from error

    def fork(
        self,
        folder: Path,
        log: int,
        lock: int,
        *,
        env: Mapping[str, str],
        limits: Mapping[str, int],
        threads: int,
        anew: bool = False,
    ) -> Forked:
        """A new child that stands in `folder`, writes to `log` and holds `lock` open.

        Args:
            env: variables besides those of `child_environment`.
            limits: bytes, by the names of `resource.RLIMIT_...`.
            threads: for its arithmetic.
            anew: start Python anew in it, for variables that libraries read when they are imported.

        Raises:
            NoChild: it could not be started.
        """
        ask = {"anew": anew} | {
            "folder": str(folder),
            "env": dict(env),
            "limits": dict(limits),
            "threads": threads,
        }
        with self._lock:
            for last in (False, True):
                try:
                    return self._ask(json.dumps(ask).encode(), log, lock)
                except OSError as error:
                    self._stop()
                    if last:
                        raise NoChild(
                            f"the job's process could not be started ({error}); see {self._log}"
                        ) from error
                    self._start()
        raise AssertionError

    def _ask(self, request: bytes, log: int, lock: int) -> Forked:
        self._wait_until_ready()
        assert self._channel is not None
        stdin, stdout, code = os.pipe(), os.pipe(), os.pipe()
        theirs = [stdin[0], stdout[1], log, lock, code[1]]
        ours = (stdin[1], stdout[0], code[0])
        try:
            socket.send_fds(self._channel, [request], theirs)
            return Forked(int(self._line()), *ours)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in (stdin[0], stdout[1], code[1]):
                os.close(fd)

    def _wait_until_ready(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._start()
        if not self._ready:
            if self._line() != b"ready":
                raise ConnectionError("the fork server said something else than that it is ready")
            self._ready = True

    def _line(self) -> bytes:
        assert self._channel is not None
        line = b""
        while not line.endswith(b"\n"):
            some = self._channel.recv(64)
            if not some:
                raise ConnectionError("the fork server ended")
            line += some
        return line.strip()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # -P: a source's files, or the folder we are in, must never be importable.
                [sys.executable, "-P", "-m", "workers.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                cwd=self._log.parent,
                start_new_session=True,
            )
        ours.settimeout(START_TIMEOUT)
        self._channel, self._ready = ours, False

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
            self._process = None


def kill_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a child and everything that it started and that stayed in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def wait_until_gone(pid: int, timeout: float) -> None:
    """Wait for a process that is no child of ours."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except OSError:
            return
        time.sleep(0.01)
