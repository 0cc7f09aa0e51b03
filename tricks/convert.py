"""A plan carried out: shard by shard, never the whole model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tricks.plan import Plan
from tricks.progress import Report, silent


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote: file name -> SHA-256 in hex, and the bytes it moved."""

    files: dict[str, str]
    bytes_read: int
    bytes_written: int


def convert(plan: Plan, source: Path, out: Path, report: Report = silent) -> Conversion:
    """Carry out `plan` on the checkpoint in `source`, into the new folder `out`."""
    raise NotImplementedError
