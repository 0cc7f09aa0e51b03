"""A source's files on disk: only what a conversion needs, taken up again where it broke off, and checked."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import tqdm

from service.disk import NoSpace
from service.hub import LONG_S, HubUnavailable, ask, endpoint, hub, patience
from service.source import Source, SourceFile
from tricks import Report, silent

_SPACE_MARGIN = 64 * 1024 * 1024  # bytes that a fetch leaves free


def fetch(source: Source, folder: Path, token: str | None = None, report: Report = silent) -> Path:
    """Have the source's files on disk: download what is missing into `folder`, or name the local folder.

    Files that are there already are not fetched again, so a broken fetch goes on where it was.

    Raises:
        BadInput: the disk is too small, access is lost, or a file arrives with other bytes than announced.
        Cancelled: by way of `report`, which counts bytes.
    """
    if source.folder is not None:
        return Path(source.folder)
    hub(token)  # our client, with its time limits
    missing = [file for file in source.files if not _is_there(folder, file)]
    check_space(folder, sum(file.size for file in missing), f"fetching {source.model}")
    done = source.size_bytes - sum(file.size for file in missing)
    report("bytes", done, source.size_bytes)
    for file in missing:
        with patience(LONG_S, stop=partial(report, "bytes", done, source.size_bytes)):
            _fetch_one(source, file, folder, token, _Count(report, done, file.size, source.size_bytes))
        done += file.size
        report("bytes", done, source.size_bytes)
    return folder


class _Count:
    """Hands one file's byte count on as the whole source's; it never goes back, though a download may."""

    def __init__(self, report: Report, before: int, size: int, total: int) -> None:
        self._report, self._before, self._size, self._total = report, before, size, total
        self._most = 0

    def __call__(self, amount: int) -> None:
        self._most = max(self._most, min(amount, self._size))
        self._report("bytes", self._before + self._most, self._total)


def _fetch_one(source: Source, file: SourceFile, folder: Path, token: str | None, count: _Count) -> None:
    """Download one file; wrong bytes are fetched once more, and never stay."""

    def once() -> None:
        hf_hub_download(
            source.model,
            file.name,
            revision=source.commit,
            local_dir=folder,
            token=token,
            endpoint=endpoint(),
            tqdm_class=byte_counter(count),
        )

    ask(source.model, once, source.commit)
    try:
        _check_fetched(folder / file.name, file)
    except HubUnavailable:
        ask(source.model, once, source.commit)
        _check_fetched(folder / file.name, file)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse work whose `needed` bytes do not fit on the disk of `folder` (which need not exist yet)."""
    free = shutil.disk_usage(existing(folder)).free
    if needed > 0 and needed + _SPACE_MARGIN > free:
        raise NoSpace(
            f"{what} needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free;"
            " free some space or use another disk"
        )


def existing(folder: Path) -> Path:
    """The nearest folder on the way to `folder` that is there: it tells the disk."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there


def _is_there(folder: Path, file: SourceFile) -> bool:
    path = folder / file.name
    # The client moves a file to its name only when it is whole, and `_check_fetched` has read it once.
    return path.is_file() and path.stat().st_size == file.size


def _check_fetched(path: Path, file: SourceFile) -> None:
    """Take back a file that is not what the Hub announced."""
    good = path.stat().st_size == file.size
    if good and file.sha256 is not None:
        with path.open("rb") as stream:
            good = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    elif good and file.blob is not None:
        good = file.blob in _ids(path)
    if not good:
        path.unlink()
        raise HubUnavailable(f"{file.name} arrived with other bytes than the Hub announced; try again")


def _ids(path: Path) -> set[str]:
    """What a Hub may call a file by its content: Git's blob id, or its SHA-1 or SHA-256 cut to size."""
    plain, wide = (_hash(name, path) for name in ("sha1", "sha256"))
    return {blob_id(path), plain, wide[:40]}


def blob_id(path: Path) -> str:
    """Git's id (hex) of a file's content."""
    return _hash("sha1", path, b"blob %d\0" % path.stat().st_size)


def _hash(name: str, path: Path, before: bytes = b"") -> str:
    with path.open("rb") as stream:
        start = partial(hashlib.new, name, before, usedforsecurity=False)
        return hashlib.file_digest(stream, start).hexdigest()


def byte_counter(count: Callable[[int], None]) -> type[tqdm]:
    """A silent progress bar for the client that hands each file's byte count on; `count` may raise."""

    class Counter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self.seen = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self.seen += int(n or 0)
            count(self.seen)

    return Counter
