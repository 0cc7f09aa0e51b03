"""Text from outside as HTML: the one place where that is done."""

from __future__ import annotations

import html
from datetime import UTC, datetime


def esc(text: object) -> str:
    """Text as HTML, quotes included."""
    return html.escape(str(text), quote=True)


def breakable(text: str) -> str:
    """Escaped text that a narrow column may break behind dots and underscores."""
    return esc(text).replace(".", ".<wbr>").replace("_", "_<wbr>")


def when(seconds: float) -> str:
    """A moment (unix seconds): in UTC here, and in the reader's own zone once the page's script has run."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M} UTC</time>'
