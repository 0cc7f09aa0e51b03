"""Planning takes turns within a process.

It patches what all threads share (torch's initialisation, attribute access, hooks on a small model that is
kept), so two plans at once, as a web page may ask for, would see each other.

Its products are so small that torch's threads cost more than they bring, several times as much on a busy
machine; so each turn computes on one of them.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from tricks.threads import one_thread

P = ParamSpec("P")
R = TypeVar("R")

_TURN = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, waiting while another thread is in any function that takes turns."""

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with _TURN, one_thread():
            return function(*args, **kwargs)

    return waiting


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Look for no garbage meanwhile: a model's modules, made by the thousand, are none, and each look at all
    that a web process holds takes a good part of a second."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
