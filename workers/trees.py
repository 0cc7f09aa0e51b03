"""Ending a process's descendants, however they tried to get away.

A process leaves its group by `setsid`, and its parent by forking twice. It does not leave a *subreaper*:
an orphan becomes the child of its nearest ancestor that is one. Each job's process is one, so that all it
started stays below it while it lives; so is the fork server, which gets what a job's process leaves behind.
"""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Collection
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, where the system (Linux) can do that."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[psutil.Process]:
    """Everything below `pid`; nothing where it is gone."""
    with suppress(psutil.NoSuchProcess):
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    return []


def end_descendants(pid: int, spared: Collection[int] = (), within: float = 5.0) -> None:
    """Kill all that is below `pid`, but for `spared` and what is below those, until nothing is left.

    It looks again after each round: what is forked meanwhile, and what an orphan's death hands up, goes too.
    """
    deadline = time.monotonic() + within
    while left := _alive(pid, spared):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _alive(pid: int, spared: Collection[int]) -> list[psutil.Process]:
    kept = set(spared)
    for number in spared:
        kept.update(process.pid for process in descendants(number))
    found = []
    for process in descendants(pid):
        with suppress(psutil.NoSuchProcess):
            if process.pid not in kept and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
