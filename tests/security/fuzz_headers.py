"""`make fuzz`: atheris against the header parser, guided by coverage; ends at the first crash.

Runs until it is stopped, or for `-max_total_time=SECONDS`. Needs the extra `fuzz`.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["tricks.checkpoint", "json"]):
    from tricks.checkpoint import parse_header
    from tricks.errors import BadInput


def once(data: bytes) -> None:
    """One header: read, or refused."""
    with suppress(BadInput):
        parse_header(data[4:], int.from_bytes(data[:4], "little"), "x.safetensors", "m")


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
