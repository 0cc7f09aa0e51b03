"""The worker's end of one child: start it within its limits, ask it, stop it, say how it died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from service.disk import FULL
from service.hub_words import HubUnavailable
from tricks import BadInput, Cancelled, Report, TricksmithError
from workers.forks import Forks, kill_group, wait_until_gone
from workers.trees import descendants, end_descendants
from workers.wire import Error

POLL = 0.1  # seconds between two looks at whether to stop
MEASURE_EVERY = 1.0  # seconds between two looks at how much memory a child takes


class DiskFull(TricksmithError):
    """The disk is full, or the job's share of it."""


class Crashed(TricksmithError):
    """The child ended without an answer, or with an error that nobody foresaw. `cause` is one word or two."""

    def __init__(self, text: str, cause: str = "crash") -> None:
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True)
class Allowance:
    """What one child may use: bytes of memory and of any one file (0: any number), threads, variables."""

    memory: int = 0
    file: int = 0
    threads: int = 1
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, int]:
        """As the kernel takes them. Half as much again as `memory`: it counts what was asked for, we count
        what is used, and ours has the better words.
        """
        found = {"DATA": self.memory + self.memory // 2, "FSIZE": self.file}
        return {name: amount for name, amount in found.items() if amount}


class ChildProcess:
    """One child; a context manager that leaves no process behind."""

    def __init__(
        self,
        forks: Forks,
        folder: Path,
        stop: Callable[[], bool],
        grace: float,
        allowance: Allowance | None = None,
        lock: int | None = None,
        anew: bool = False,
    ) -> None:
        """Start it with its log and its Hugging Face home in `folder`.

        Args:
            folder: the job's work folder.
            stop: asked ten times a second; True ends what the child does, with `Cancelled`.
            grace: seconds in which a child that was asked to stop may do so by itself.
            lock: a file descriptor that it keeps open for as long as it lives.
            anew: start Python anew in it (see `Forks.fork`).

        Raises:
            NoChild: it could not be started.
        """
        self._stop = stop
        self._grace = grace
        self._allowance = allowance or Allowance()
        self._log = folder / "child.log"
        self._ooms = oom_kills()
        self._measured = time.monotonic()
        self._left = b""
        self._ended = False
        with self._log.open("ab") as log:
            self._child = forks.fork(
                folder,
                log.fileno(),
                log.fileno() if lock is None else lock,
                env=self._allowance.env,
                limits=self._allowance.limits,
                threads=self._allowance.threads,
                anew=anew,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's too."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def ask(
        self,
        do: str,
        report: Report,
        *,
        tell: Callable[[dict[str, Any]], None] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Have the child do something, and hand on its reports, and to `tell` what else it tells meanwhile.

        Raises:
            Cancelled: `stop` said so, or `report` raised it; the child is stopped then.
            BadInput: the child says that the request cannot be carried out.
            DiskFull: as it says.
            Crashed: the child died, or took more memory than it may.
        """
        self._say({"do": do, **arguments})
        asked_at: float | None = None
        while True:
            message = self._next()
            self._check_memory()
            if message is None and asked_at is None and self._stop():
                asked_at = time.monotonic()
                self._say({"do": "cancel"})
            if asked_at is not None and time.monotonic() - asked_at > self._grace:
                self.kill()
                raise Cancelled("cancelled")
            if message is None:
                continue
            if "done" in message:
                done: dict[str, Any] = message["done"]
                return done
            if "error" in message:
                raise _as_error(Error(message["error"]), message["text"])
            if asked_at is None and self._stop():
                asked_at = time.monotonic()
                self._say({"do": "cancel"})
            if "tell" in message:
                if tell is not None and asked_at is None:
                    tell(message["tell"])
            elif asked_at is None:
                unit, reached, total = message["report"]
                report(unit, reached, total)

    def kill(self) -> None:
        """End the child and whatever it started: politely, then not. A second call does nothing."""
        if self._ended:
            return
        self._ended = True
        started = descendants(self.pid)
        kill_group(self.pid, signal.SIGTERM)
        with suppress(ChildProcessError):
            if self._child.wait(self._grace / 2) is None:
                end_descendants(self.pid)  # before their parent: what it leaves would be nobody's
                kill_group(self.pid, signal.SIGKILL)
                self._child.wait(10.0)
        kill_group(self.pid, signal.SIGKILL)  # what it started and did not end
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_gone(self.pid, 1.0)
        self._child.close()

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with suppress(BrokenPipeError):  # a dead child is found by the reading side, with its reason
            while data:
                data = data[os.write(self._child.stdin, data) :]

    def _next(self) -> dict[str, Any] | None:
        """The next message, or None where none came in a short while.

        Raises:
            Crashed: none will come.
        """
        if b"\n" not in self._left:
            with selectors.DefaultSelector() as selector:
                selector.register(self._child.stdout, selectors.EVENT_READ)
                if not selector.select(POLL):
                    return None
            some = os.read(self._child.stdout, 1 << 16)
            if not some:
                raise self._death()
            self._left += some
            if b"\n" not in self._left:
                return None
        line, _, self._left = self._left.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _death(self) -> Crashed:
        try:
            code = self._child.wait(10.0)
        except ChildProcessError:
            code = None
        return how_it_died(code, self._log, out_of_memory=oom_kills() > self._ooms)

    def _check_memory(self) -> None:
        now = time.monotonic()
        if not self._allowance.memory or now - self._measured < MEASURE_EVERY:
            return
        self._measured = now
        used = _memory(self.pid)
        if used > self._allowance.memory:
            self.kill()
            raise Crashed(
                f"the job needs more than the {self._allowance.memory / 1e9:.1f} GB of memory that one job"
                " may take here; retry on a machine with more memory",
                "memory",
            )


def how_it_died(code: int | None, log: Path, *, out_of_memory: bool = False) -> Crashed:
    """A child's exit code in words."""
    if code is None:
        return Crashed("the job's process was lost, with the process that had started it; retry")
    if code == -signal.SIGKILL and out_of_memory:
        text = "the job's process was killed because memory ran out; retry on a machine with more memory"
        return Crashed(text, "memory")
    if code == -signal.SIGKILL:
        text = "the job's process was killed from outside (SIGKILL): by a person, or a limit of the machine"
        return Crashed(f"{text}; retry", "killed")
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return Crashed(f"the job's process crashed ({name}); retry, and report it if it happens again")
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = f", saying: {said[-1].strip()[:300]}" if said else ""
    return Crashed(f"the job's process ended without an answer (exit code {code}){last}")


def oom_kills() -> int:
    """How many processes were killed for want of memory: in this container, else on this machine."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with suppress(OSError):
            for line in Path(path).read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    return 0


def _memory(pid: int) -> int:
    """Bytes that only this process tree needs: mapped files can be dropped, forked pages are shared."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *descendants(pid)]:
            with suppress(psutil.NoSuchProcess):
                used = process.memory_info()
                total += used.rss - used.shared
    return total


def _as_error(kind: Error, text: str) -> TricksmithError:
    match kind:
        case Error.CANCELLED:
            return Cancelled(text)
        case Error.DISK_FULL:
            return DiskFull(FULL)
        case Error.MEMORY:
            return Crashed("memory ran out; retry on a machine with more memory", "memory")
        case Error.GPU_MEMORY:
            return Crashed("the GPU's memory ran out; retry on a larger GPU, or on a CPU", "memory")
        case Error.GPU:
            return Crashed(f"the GPU failed ({text[:200]}); retry on another one", "gpu")
        case Error.HUB:
            return HubUnavailable(text)
        case Error.BAD_INPUT:
            return BadInput(text)
        case Error.UNEXPECTED:
            return Crashed(
                f"something unforeseen went wrong: {text}; retry, and report it if it happens again"
            )
