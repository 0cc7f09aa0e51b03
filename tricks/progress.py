"""The one shape in which long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""`report(unit, done, total)`; may raise `Cancelled` to stop the work."""


def silent(unit: str, done: int, total: int) -> None:
    """A `Report` that tells nobody."""
