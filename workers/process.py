"""The worker's end of a child process: start it without secrets, ask it, stop it, say how it died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from service.disk import FULL
from tricks import BadInput, Cancelled, Report, TricksmithError
from workers.wire import Error

KEPT_VARIABLES = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONHASHSEED",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH_", "TRITON_")
POLL = 0.1  # seconds between two looks at whether to stop


class DiskFull(TricksmithError):
    """The disk is full."""


class Crashed(TricksmithError):
    """The child ended without an answer, or with an error that nobody foresaw."""


def child_environment(folder: Path, env: Mapping[str, str] | None = None, jobs: int = 1) -> dict[str, str]:
    """What a child may see: no token, no password, no address; and a Hugging Face home of its own.

    It gets its share of the cores where `jobs` of them run side by side, unless the operator set one.
    A list of what is kept, not of what is dropped: secrets have any name.
    """
    env = os.environ if env is None else env
    kept = {
        name: value
        for name, value in env.items()
        if name in KEPT_VARIABLES or (name.startswith(KEPT_PREFIXES) and "TOKEN" not in name)
    }
    home = str(folder / "hf")
    packages = str(Path(__file__).resolve().parents[1])
    kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return kept | {
        "HF_HOME": home,
        "HF_TOKEN_PATH": home + "/no-token",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": packages,
        "PYTHONUNBUFFERED": "1",
    }


class ChildProcess:
    """One child; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, stop: Callable[[], bool], grace: float, jobs: int = 1) -> None:
        """Start it with its log and its Hugging Face home in `folder`.

        Args:
            folder: the job's work folder.
            stop: asked ten times a second; True ends what the child does, with `Cancelled`.
            grace: seconds in which a child that was asked to stop may do so by itself.
            jobs: how many of them share this machine.
        """
        self._stop = stop
        self._grace = grace
        self._log = folder / "child.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # -P: a source's files, or the folder we are in, must never be importable.
                [sys.executable, "-P", "-m", "workers.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=child_environment(folder, jobs=jobs),
                start_new_session=True,
            )
        self._left = b""

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's too."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def ask(self, do: str, report: Report, **arguments: Any) -> dict[str, Any]:
        """Have the child do something, and hand its reports on.

        Raises:
            Cancelled: `stop` said so, or `report` raised it; the child is stopped then.
            BadInput: the child says that the request cannot be carried out.
            DiskFull: as it says.
            Crashed: the child died.
        """
        self._say({"do": do, **arguments})
        asked_at: float | None = None
        while True:
            message = self._next()
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
            if asked_at is None:
                if self._stop():
                    asked_at = time.monotonic()
                    self._say({"do": "cancel"})
                unit, reached, total = message["report"]
                report(unit, reached, total)

    def kill(self) -> None:
        """End the child and whatever it started: politely, then not."""
        for sent, patience in ((signal.SIGTERM, self._grace / 2), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _say(self, message: dict[str, Any]) -> None:
        pipe: IO[bytes] | None = self._process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError):  # a dead child is found by the reading side, with its reason
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

    def _next(self) -> dict[str, Any] | None:
        """The next message, or None where none came in a short while.

        Raises:
            Crashed: none will come.
        """
        pipe = self._process.stdout
        assert pipe is not None
        if b"\n" not in self._left:
            with selectors.DefaultSelector() as selector:
                selector.register(pipe, selectors.EVENT_READ)
                if not selector.select(POLL):
                    return None
            some = os.read(pipe.fileno(), 1 << 16)
            if not some:
                raise Crashed(how_it_died(self._process.wait(), self._log))
            self._left += some
            if b"\n" not in self._left:
                return None
        line, _, self._left = self._left.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def how_it_died(code: int, log: Path) -> str:
    """A child's exit code in words."""
    if code == -signal.SIGKILL:
        return (
            "the job's process was killed, most likely because memory ran out; "
            "retry on a machine with more memory"
        )
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the job's process crashed ({name}); retry, and report it if it happens again"
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = f", saying: {said[-1].strip()[:300]}" if said else ""
    return f"the job's process ended without an answer (exit code {code}){last}"


def _as_error(kind: Error, text: str) -> TricksmithError:
    match kind:
        case Error.CANCELLED:
            return Cancelled(text)
        case Error.DISK_FULL:
            return DiskFull(FULL)
        case Error.MEMORY:
            return Crashed("memory ran out; retry on a machine with more memory")
        case Error.BAD_INPUT:
            return BadInput(text)
        case Error.UNEXPECTED:
            return Crashed(
                f"something unforeseen went wrong: {text}; retry, and report it if it happens again"
            )
