"""Planning takes turns within a process.

It patches what all threads share (torch's initialisation, attribute access, hooks on a small model that is
kept), so two plans at once, as a web page may ask for, would see each other.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_TURN = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, waiting while another thread is in any function that takes turns."""

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with _TURN:
            return function(*args, **kwargs)

    return waiting
