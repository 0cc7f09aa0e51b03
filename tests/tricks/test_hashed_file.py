"""A file filled by several threads: its bytes in their order, its digest, and what a thread raises."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from tricks.errors import BadInput
from tricks.hashed_file import HashedFile


def test_parts_that_end_in_any_order_stand_in_theirs(tmp_path: Path) -> None:
    def make(n: int) -> None:
        def work(view: memoryview) -> None:
            time.sleep(0.003 * (n % 3 == 0))
            view[:] = bytes([n]) * len(view)

        out.make(100 + n, work)

    with HashedFile(tmp_path / "file") as out:
        out.put(b"head")
        for n in range(50):
            make(n)
        out.put(b"tail")
    expected = b"head" + b"".join(bytes([n]) * (100 + n) for n in range(50)) + b"tail"
    assert (tmp_path / "file").read_bytes() == expected
    assert out.sha256 == hashlib.sha256(expected).hexdigest()


def test_what_a_thread_raises_ends_the_file(tmp_path: Path) -> None:
    def fails(view: memoryview) -> None:
        raise BadInput("no such gain")

    with pytest.raises(BadInput, match="no such gain"), HashedFile(tmp_path / "file") as out:
        out.make(10, fails)
