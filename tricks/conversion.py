"""What a conversion has done, in plain types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote: file name -> SHA-256 in hex, and the bytes it moved.

    `conditions` maps each operation that inverted matrices to the worst of their condition numbers. `settled`
    is the plan in JSON as it was carried out, where activations had a say in it.
    """

    files: dict[str, str]
    bytes_read: int
    bytes_written: int
    conditions: dict[str, float] = field(default_factory=dict)
    settled: dict[str, Any] | None = None
