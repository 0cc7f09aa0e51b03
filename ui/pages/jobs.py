"""The queue: everyone's latest jobs, with links to their pages; other people's private ones are left out."""

from __future__ import annotations

import gradio as gr

from ui.pages import parts
from ui.pages.script import live_script

_BODY = (
    '<p class="ts-lost ts-warn" hidden role="alert">The connection is lost; this page tries again by '
    "itself.</p>"
    '<div data-live="jobs" class="ts-slot-jobs"></div>'
)


def build() -> None:
    """Lay out the queue in the current Blocks."""
    gr.HTML(parts.brand())
    gr.HTML(_BODY, js_on_load=live_script("live/queue"), elem_id="jobs")
