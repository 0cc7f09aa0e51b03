"""Text from outside as HTML: the one place where that is done."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime

_BREAKS = re.compile(r"(?<!\d)\.|\.(?!\d)|_")


def esc(text: object) -> str:
    """Text as HTML, quotes included."""
    return html.escape(str(text), quote=True)


def breakable(text: str) -> str:
    """Escaped text that a narrow column may break behind dots and underscores, but not within a number."""
    return _BREAKS.sub(r"\g<0><wbr>", esc(text))


def when(seconds: float) -> str:
    """A moment (unix seconds): in UTC here, and in the reader's own zone once the page's script has run."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M} UTC</time>'


def clock(seconds: float) -> str:
    """Like `when`, to the second; the day is left out once the page's script has run."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}" data-clock>{at:%Y-%m-%d %H:%M:%S} UTC</time>'
