"""A preflight in words."""

from __future__ import annotations

from service.preflight import Preflight
from ui.text import one_line


def preflight_lines(seen: Preflight) -> list[str]:
    """What the work needs here, and what to know before it starts."""
    source = seen.source
    disk = f"disk {_gigabytes(seen.disk)} of {_gigabytes(seen.disk_free)} free"
    memory = f"memory {_gigabytes(seen.memory)} of {_gigabytes(seen.memory_free)} free"
    lines = [
        "",
        f"Before it starts: {source.reference}, licence {source.licence or 'not stated'}",
        f"  {_gigabytes(seen.download)} to download; {disk}; {memory}",
    ]
    return [one_line(line) if line else "" for line in (*lines, *(f"  ! {text}" for text in seen.warnings))]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
