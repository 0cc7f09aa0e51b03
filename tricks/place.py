"""A place of the model that a trick looked at, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """`where` is a module's path; `detail` says what is done there, or why nothing is."""

    trick: str
    where: str
    fits: bool
    detail: str
