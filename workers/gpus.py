"""This host's GPUs: each is one job's at a time, whichever of the host's workers runs it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_ID = re.compile(r"[A-Za-z0-9/-]+")


def visible_gpus(env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA itself is not asked."""
    env = os.environ if env is None else env
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return tuple(name for name in names if _ID.fullmatch(name) and name != "-1")
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.splitlines() if _ID.fullmatch(line.strip()))


class Gpus:
    """Assigns them; `locks` is a folder that all workers of this host share."""

    def __init__(self, locks: Path, names: tuple[str, ...]) -> None:
        self.names = names
        self._locks = locks
        self._busy: set[str] = set()
        if names:
            locks.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def busy(self) -> int:
        """How many jobs of this worker hold one."""
        return len(self._busy)

    @contextmanager
    def one(self, wait: Callable[[], None]) -> Iterator[dict[str, str]]:
        """The variables with which a child sees one GPU that is no other job's; none on a host without GPUs.

        Where all are taken, `wait` is called a few times a second until one is free; it may raise.
        """
        if not self.names:
            yield NO_GPU
            return
        while (found := self._take()) is None:
            wait()
            time.sleep(0.2)
        name, lock = found
        try:
            yield {"CUDA_VISIBLE_DEVICES": name}
        finally:
            self._busy.discard(name)
            os.close(lock)

    def _take(self) -> tuple[str, int] | None:
        for name in self.names:
            path = self._locks / f"{name.replace('/', '_')}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._busy.add(name)
            return name, lock
        return None
