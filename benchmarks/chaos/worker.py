"""A worker whose clock can be made wrong: `python -m benchmarks.chaos.worker OFFSET_FILE`.

Python's `time.time` is moved by the seconds in the file, which may change at any time; so everything in this
process that reads the time of day is wrong with it. The monotonic clock, which a real jump leaves alone, is
left alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

_real = time.time
_file = Path(sys.argv[1])
_read = [0.0, 0.0]  # when it was read last, and what it said


def _wrong() -> float:
    now = _real()
    if now - _read[0] > 0.2:
        _read[0] = now
        try:
            _read[1] = float(_file.read_text())
        except (OSError, ValueError):
            _read[1] = 0.0
    return now + _read[1]


time.time = _wrong

from workers.main import main  # noqa: E402 (after the clock is wrong)

sys.exit(main(["worker"]))
