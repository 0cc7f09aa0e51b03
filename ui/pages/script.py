"""The pages' own scripts, as small as they can be."""

from __future__ import annotations

import json
from pathlib import Path

_HERE = Path(__file__).parent

HEAD = (_HERE / "head.html").read_text(encoding="utf-8")
"""What stands in the head of every page."""


def live_script(address: str) -> str:
    """What keeps a `gr.HTML` fresh from `address`, relative to the page."""
    return (_HERE / "live.js").read_text(encoding="utf-8").replace("ADDRESS", json.dumps(address))
