"""Resident memory of this process in bytes, as Linux counts it (mapped file pages included).

`ru_maxrss` will not do: across fork and exec it starts from the parent's size.
"""

from __future__ import annotations

import re
from pathlib import Path


def resident() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes resident at any time since the process began."""
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}; this benchmark needs Linux")
    return int(found[1]) * 1024
