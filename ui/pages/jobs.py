"""The latest jobs, each with a link to its page."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from service.api import Service
from tricks import TricksmithError
from ui.pages import parts

_TICK_S = 2.0


def build(page: gr.Blocks, service: Service) -> None:
    """Lay out the list of jobs in the current Blocks."""

    def show() -> str:
        try:
            return parts.jobs_table(service.jobs(limit=50), time.time())
        except TricksmithError as error:
            return parts.problem(str(error))

    gr.HTML(parts.brand())
    table = gr.HTML(elem_id="jobs")
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 32, "api_visibility": "private"}
    page.load(show, None, table, **quiet)
    gr.Timer(_TICK_S).tick(show, None, table, trigger_mode="once", **quiet)
