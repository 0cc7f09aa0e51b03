"""A file that is written and hashed beside the work that makes its bytes.

Three things want the processor during a conversion: the arithmetic, the kernel's copy of what is written,
and SHA-256. Both of the latter run without Python's lock, so each has a thread; a few buffers go round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

BUFFER = 2 << 20
"""Bytes of one buffer: it stays in the processor's cache from reading through hashing to writing."""

_BUFFERS = 4


class HashedFile:
    """A new file at `path`. Bytes go in by `put`, or without a copy by filling a `buffer`.

    After the `with` block `sha256` holds the digest in hex.

    Raises:
        OSError: what the file system answers, from the call after the one that failed at the latest.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = ""
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._hasher = ThreadPoolExecutor(max_workers=1)
        self._free: SimpleQueue[tuple[bytearray, list[Future[None]]]] = SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put((bytearray(BUFFER), []))

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while not self._free.empty():
                for future in self._free.get()[1]:
                    if kind is None:
                        future.result()
            self.sha256 = self._digest.hexdigest()
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._hasher.shutdown(cancel_futures=True)
            self._file.close()

    @contextmanager
    def buffer(self, size: int) -> Iterator[memoryview]:
        """A view of `size` bytes (at most `BUFFER`) to fill; it is written when the block ends."""
        memory, futures = self._free.get()
        for future in futures:
            future.result()
        view = memoryview(memory)[:size]
        yield view
        self._free.put(
            (memory, [self._writer.submit(self._write, view), self._hasher.submit(self._hash, view)])
        )

    def put(self, data: bytes) -> None:
        """Write `data`."""
        for begin in range(0, len(data), BUFFER):
            part = data[begin : begin + BUFFER]
            with self.buffer(len(part)) as view:
                view[:] = part

    def _write(self, view: memoryview) -> None:
        while len(view):
            view = view[self._file.write(view) :]

    def _hash(self, view: memoryview) -> None:
        self._digest.update(view)
