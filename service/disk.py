"""A full disk, told from other failures."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tricks import BadInput


class NoSpace(BadInput):
    """Work was not begun, because it would not fit on the disk."""


FULL = "the disk is full; free some space and try again"


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn a full disk into one line for the user.

    Raises:
        BadInput: the disk is full, or the user's share of it.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise BadInput(FULL) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk; safetensors tells that in words alone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
