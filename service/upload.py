"""Sending files to a Hub repo ahead of the commit that will name them: counted, cancellable, never twice."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from service.hub import DEFAULT_ENDPOINT, ask, endpoint
from tricks import BadInput, Report


class Progress:
    """How many bytes of a publication are done; `still` says the same again, so that a stop is heard."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total = report, total
        self._before = self._now = 0
        self._in_hand = False

    def begin(self) -> None:
        """A file is taken in hand: what is read of others does not count."""
        self._in_hand = True

    def at(self, done: int) -> None:
        """So many bytes of the file in hand are done."""
        if self._in_hand:
            self._now = max(self._now, min(self._before + done, self._total))
            self.still()

    def finished(self, size: int) -> None:
        """The file in hand, of `size` bytes, is done."""
        self._before = self._now = min(self._before + size, self._total)
        self._in_hand = False
        self.still()

    def still(self) -> None:
        """Nothing new; may raise `Cancelled`."""
        self._report("bytes", self._now, self._total)


class _Counted(io.BufferedReader):
    """A file that tells how far it was read; the client reads it from the start again when it tries again."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self._count(self.tell())
        return block


@contextmanager
def additions(
    folder: Path, digests: Mapping[str, str], progress: Progress
) -> Iterator[list[CommitOperationAdd]]:
    """The files to commit, each with the SHA-256 that it is known to have.

    Xet storage belongs to huggingface.co: any other Hub gets open files, for which the client uses the LFS
    protocol that all of them speak. These are counted as they go; Xet's are counted file by file.
    """
    made: list[CommitOperationAdd] = []
    xet = endpoint() == DEFAULT_ENDPOINT
    streams: list[_Counted] = []
    try:
        for name, sha256 in digests.items():
            addition = CommitOperationAdd(name, folder / name)
            addition.upload_info.sha256 = bytes.fromhex(sha256)
            if not xet:
                streams.append(_Counted(folder / name, progress.at))
                addition.path_or_fileobj = streams[-1]
            made.append(addition)
        yield made
    finally:
        for stream in streams:
            stream.close()


def in_memory(data: bytes) -> bytes | io.BytesIO:
    """What a commit adds, in a form in which its Hub takes it (see `additions`)."""
    return data if endpoint() == DEFAULT_ENDPOINT else io.BytesIO(data)


def send(
    api: HfApi, to: str, files: list[CommitOperationAdd], revision: str, pr: bool, progress: Progress
) -> None:
    """Send the large files one by one; what arrived at an earlier try is not sent again.

    They are not visible before the commit.

    Raises:
        BadInput: the Hub refuses one, because there is no room for it, say.
    """
    progress.still()
    for file in files:
        progress.begin()

        def once(file: CommitOperationAdd = file) -> None:
            if isinstance(file.path_or_fileobj, io.BufferedReader):
                file.path_or_fileobj.seek(0)  # an upload that failed leaves it where it was
            with _plain_errors(file.path_in_repo):
                api.preupload_lfs_files(to, [file], revision=revision, create_pr=pr, free_memory=False)

        ask(to, once)
        progress.finished(file.upload_info.size)


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """The client wraps what goes wrong in one upload into a RuntimeError: unwrap it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise BadInput(f"{name} could not be uploaded; try again") from error
    except ValueError as error:
        _, told, said = str(error).rpartition("Encountered error for file with OID")
        if not told:
            raise
        reason = " ".join(said.partition("`")[2].split())[:200] or "no reason given"
        raise BadInput(f"the Hub does not take {name}: {reason}; free storage, or go elsewhere") from error
