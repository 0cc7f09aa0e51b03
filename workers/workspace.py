"""The work folders of this host: one attempt at a time in each, room reserved, none left behind.

`work/JOB` holds what a job's attempts make (and their marks). An attempt, and its child process, hold a lock
in it for as long as they live; the lock goes with them however they die. Where the former attempt still holds
it (a worker that was paused past its lease, say) the new one starts afresh in `work/JOB.N`: two never write
to the same files.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from service.disk import NoSpace
from service.jobs import JobStore, NewerRecord, State
from tricks import BadInput
from workers.marks import remove

LOCK = "lock"
RESERVED = "reserved.json"
DATA = "hf"  # the child's Hugging Face home, with data that the evidence needs; not part of what is reserved
MARGIN = 64 * 1024 * 1024  # bytes of the disk that no job may take
_NAME = re.compile(r"([0-9a-f]{12})(\.\d+)?")


class Workspace:
    """One attempt's folder, locked while the block runs."""

    def __init__(self, work: Path, job_id: str) -> None:
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._work = work
        self.folder, self.lock = _first_free(work, job_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.lock)

    def reserve(self, needed: int, what: str, wait: Callable[[], None]) -> None:
        """Keep `needed` bytes of the disk for this attempt; where others hold them, wait until they are free.

        `wait` is called about once a second meanwhile, and may raise.

        Raises:
            NoSpace: the disk is too small even without the others.
        """
        while True:
            with _locked(self._work / "reserve.lock"):
                free = shutil.disk_usage(self._work).free - MARGIN
                others = sum(_outstanding(folder) for folder in self._others())
                if needed <= free - others:
                    (self.folder / RESERVED).write_text(json.dumps(needed))
                    return
            if needed > free:
                raise NoSpace(
                    f"{what} needs {needed / 1e9:.2f} GB and the disk has {max(free, 0) / 1e9:.2f} GB free;"
                    " free some space or use another disk"
                )
            wait()
            time.sleep(1.0)

    def left(self) -> int:
        """Bytes of the disk that nobody, this attempt included, has reserved."""
        with _locked(self._work / "reserve.lock"):
            free = shutil.disk_usage(self._work).free - MARGIN
            return free - sum(_outstanding(folder) for folder in (self.folder, *self._others()))

    def clear(self) -> None:
        """Remove the folder and what is in it."""
        remove(self.folder)

    def _others(self) -> list[Path]:
        found = [path for path in self._work.iterdir() if _NAME.fullmatch(path.name) and path != self.folder]
        return [path for path in found if _is_held(path)]


def sweep(work: Path, store: JobStore, keep_failed: float) -> list[str]:
    """Remove the work folders that nobody needs any more; their names.

    Kept are those in use, those of queued jobs, and for `keep_failed` seconds those of failed jobs and of
    jobs that run on another host.
    """
    removed = []
    for folder in sorted(work.iterdir()) if work.is_dir() else []:
        match = _NAME.fullmatch(folder.name)
        if match is None:
            continue
        lock = _try_lock(folder)
        if lock is None:
            continue
        try:
            if match[2] is not None or not _is_needed(folder, match[1], store, keep_failed):
                remove(folder)
                removed.append(folder.name)
        finally:
            os.close(lock)
    return removed


def _is_needed(folder: Path, job_id: str, store: JobStore, keep_failed: float) -> bool:
    try:
        job = store.get(job_id)
    except NewerRecord:
        return True
    except BadInput:
        return False
    age = time.time() - max(path.stat().st_mtime for path in [folder, folder / "marks"] if path.exists())
    if job.state in (State.FAILED, State.RUNNING):
        return age < keep_failed
    return job.state is State.QUEUED


def _first_free(work: Path, job_id: str) -> tuple[Path, int]:
    for number in range(1000):
        folder = work / (job_id if number == 0 else f"{job_id}.{number}")
        # Whoever only looks whether the lock is held holds it for a moment.
        for _ in range(5):
            folder.mkdir(exist_ok=True, mode=0o700)
            lock = _try_lock(folder)
            if lock is not None:
                return folder, lock
            time.sleep(0.05)
    raise BadInput(f"all work folders of job {job_id} are in use; stop the workers that hang, then retry")


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process holds it, or it is gone."""
    path = folder / LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The folder may have been removed, and made anew, between the two lines above.
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _is_held(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    lock = _try_lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is None and folder.exists()


def _outstanding(folder: Path) -> int:
    """Bytes that an attempt has reserved and not yet written."""
    try:
        reserved = int(json.loads((folder / RESERVED).read_text()))
    except (OSError, ValueError):
        return 0
    return max(0, reserved - used_bytes(folder) + used_bytes(folder / DATA))


def used_bytes(folder: Path) -> int:
    """What a folder's files take on the disk; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
