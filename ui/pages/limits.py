"""What this service lets one user ask for, said before anybody asks."""

from __future__ import annotations

from service.limits import Limits
from ui.pages.escape import esc
from ui.text import count, size


def told(limits: Limits) -> str:
    """One line, or nothing where there is no limit."""
    most = [
        (limits.model_bytes, f"models up to {size(limits.model_bytes)}"),
        (limits.user_jobs, f"{count(limits.user_jobs, 'job')} a day"),
        (limits.user_bytes, f"{size(limits.user_bytes)} of models a day"),
        (limits.user_waiting, f"{count(limits.user_waiting, 'job')} waiting at a time"),
    ]
    said = [text for limit, text in most if limit]
    return f'<p class="ts-quiet">Here, for each user: {esc("; ".join(said))}.</p>' if said else ""
