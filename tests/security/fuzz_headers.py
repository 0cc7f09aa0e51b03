"""`make fuzz`: atheris against the header parser, guided by coverage; ends at the first crash.

Runs until it is stopped, or for `-max_total_time=SECONDS`. It begins with headers that are nearly right, and
knows the words of the format: chance alone does not spell JSON. Needs the extra `fuzz`.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import suppress
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["tricks.checkpoint", "json"]):
    from tricks.checkpoint import parse_header
    from tricks.errors import BadInput

WORDS = ('"dtype":"F32"', '"dtype":"BF16"', '"shape":[', '"data_offsets":[', '"__metadata__":{', "},", "],")
ODD = ("1e400", "-0", "true", "null", "18446744073709551616", "9223372036854775807", "\\ud800", "NaN")


def once(data: bytes) -> None:
    """One header: read, or refused."""
    with suppress(BadInput):
        parse_header(data[4:], int.from_bytes(data[:4], "little"), "x.safetensors", "m")


def begin(folder: Path) -> list[str]:
    """Write what the fuzzer begins with; its arguments."""
    two = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "__metadata__": {"format": "pt"},
    }
    seeds = folder / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, header in enumerate(({}, {"a": two["a"]}, two)):
        raw = json.dumps(header, separators=(",", ":")).encode()
        (seeds / str(number)).write_bytes(struct.pack("<I", (0, 24, 26)[number]) + raw)
    quoted = (json.dumps(word) for word in (*WORDS, *ODD))
    (folder / "words").write_text("\n".join(quoted) + "\n")
    return [str(seeds), f"-dict={folder / 'words'}"]


if __name__ == "__main__":
    atheris.Setup([*sys.argv, *begin(Path("build/fuzz"))], once)
    atheris.Fuzz()  # never returns: what it found stays in build/fuzz/seeds, for the next time
