"""A file that is written and hashed beside the work that makes its bytes.

Three things want the processor during a conversion: reading with the arithmetic on it, the kernel's copy of
what is written, and SHA-256. All run without Python's lock: the first has as many threads as there are cores,
up to `_MAKERS`, and the others one each, which take the buffers in their order; a few buffers go round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

BUFFER = 2 << 20
"""Bytes of one buffer: it stays in the processor's cache from reading through hashing to writing."""

_MAKERS = 6


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
        makers = min(_MAKERS, os.cpu_count() or 1)
        self._makers = ThreadPoolExecutor(max_workers=makers)
        self._free: SimpleQueue[tuple[bytearray, list[Future[None]]]] = SimpleQueue()
        for _ in range(makers + 3):  # one waits, one is written, one is hashed
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
            self._makers.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)
            self._hasher.shutdown(cancel_futures=True)
            self._file.close()

    def make(self, size: int, work: Callable[[memoryview], None]) -> None:
        """Have `work` fill a view of `size` bytes (at most `BUFFER`) on another thread; then it is written.

        What `work` raises is raised by a later call, or at the end of the `with` block.
        """
        memory, view = self._taken(size)
        made = self._makers.submit(work, view)

        def then(use: Callable[[memoryview], None]) -> None:
            made.result()
            use(view)

        self._free.put(
            (memory, [self._writer.submit(then, self._write), self._hasher.submit(then, self._hash)])
        )

    @contextmanager
    def buffer(self, size: int) -> Iterator[memoryview]:
        """A view of `size` bytes (at most `BUFFER`) to fill; it is written when the block ends."""
        memory, view = self._taken(size)
        yield view
        self._free.put(
            (memory, [self._writer.submit(self._write, view), self._hasher.submit(self._hash, view)])
        )

    def _taken(self, size: int) -> tuple[bytearray, memoryview]:
        memory, futures = self._free.get()
        for future in futures:
            future.result()
        return memory, memoryview(memory)[:size]

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
