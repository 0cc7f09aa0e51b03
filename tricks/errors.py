"""What Tricksmith raises when it says no. Each message is one line: what is wrong and what to do."""

from __future__ import annotations


class TricksmithError(Exception):
    """Base of every error whose message is written for the user."""


class BadInput(TricksmithError):
    """The request cannot be carried out as it stands (the command line exits with 2)."""


class Cancelled(TricksmithError):
    """The user cancelled; raised from a progress report to unwind the work in hand."""
