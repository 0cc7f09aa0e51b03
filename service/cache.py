"""Sources from the Hub that were fetched once, kept for other jobs of this host.

`sources/KEY/files` holds one model at one commit. Whoever uses an entry holds its lock shared, whoever fills
or removes it holds it alone. Where room is needed, the entry that was used longest ago and is not in use goes
first. A file is compared with the digest that the Hub gave for it each time it is used again: a job's process
could have written to it. What not everybody may read is not kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.fetch import fetch
from service.manifest import file_digests
from service.source import Source
from tricks import Report

_USED = "used"
_LOCK = "lock"


class SourceCache:
    """The cached sources in `folder`, of `limit` bytes together; 0 keeps nothing."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def keeps(self, source: Source) -> bool:
        """Whether this source is kept here at all."""
        if source.folder is not None or source.private or source.gated:
            return False
        return source.size_bytes <= self._limit

    def missing(self, source: Source) -> int:
        """How many bytes of the source are not here yet."""
        files = self._entry(source) / "files"
        there = [file.size for file in source.files if _size(files / file.name) == file.size]
        return source.size_bytes - sum(there)

    @contextmanager
    def held(
        self, source: Source, report: Report, wait: Callable[[], None], token: str | None = None
    ) -> Iterator[Path]:
        """The source's files, for as long as the block runs; fetched first where they are not here.

        Where another job fetches the same, `wait` is called a few times a second until it has them.

        Raises:
            BadInput: as `fetch`.
        """
        entry = self._entry(source)
        lock = _locked(entry, wait)
        try:
            files = entry / "files"
            _drop_changed(source, files)
            self._make_room(self.missing(source))
            fetch(source, files, token, report)
            (entry / _USED).touch()
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield files
        finally:
            os.close(lock)

    def used_bytes(self) -> int:
        """What all entries take together."""
        return sum(_bytes(entry) for entry in self._entries())

    def _make_room(self, needed: int) -> None:
        """Remove unused entries, the longest unused first, until `needed` bytes fit below the limit."""
        sizes = {entry: _bytes(entry) for entry in self._entries()}
        excess = sum(sizes.values()) + needed - self._limit
        for entry in sorted(sizes, key=_last_used):
            if excess <= 0:
                return
            if _remove_unused(entry):
                excess -= sizes[entry]

    def _entries(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    def _entry(self, source: Source) -> Path:
        return self._folder / hashlib.sha256(source.key.encode()).hexdigest()[:32]


def _locked(entry: Path, wait: Callable[[], None]) -> int:
    """A descriptor that holds the entry's lock alone."""
    while True:
        entry.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            lock = os.open(entry / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), (entry / _LOCK).stat()):
                    return lock
            os.close(lock)
        wait()
        time.sleep(0.2)


def _remove_unused(entry: Path) -> bool:
    try:
        lock = os.open(entry / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _drop_changed(source: Source, files: Path) -> None:
    """Remove files that are no longer what the Hub announced."""
    announced = {file.name: file.sha256 for file in source.files if (files / file.name).is_file()}
    known = [name for name, digest in announced.items() if digest is not None]
    found = file_digests(files, known)
    for name, digest in announced.items():
        # Small files have no digest: they are fetched again.
        if digest is None or found[name] != digest:
            (files / name).unlink()


def _last_used(entry: Path) -> float:
    with suppress(OSError):
        return (entry / _USED).stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return -1


def _bytes(folder: Path) -> int:
    return sum(_size(Path(root) / name) for root, _, names in os.walk(folder) for name in names)
