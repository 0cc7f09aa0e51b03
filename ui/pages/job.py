"""A job's own page, `job?id=...`: stages as they go, the plan, what was measured, the card, the log.

All that changes comes from `live`, and never passes through Gradio's queue; only the buttons do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from service.api import Service
from service.jobs import Job
from tricks import BadInput, TricksmithError
from ui.pages import parts
from ui.pages.script import live_script
from ui.pages.visitor import visitor

_LEFT = (
    '<div data-live="head" class="ts-slot-head"></div><p class="ts-sr" role="status" data-live="said"></p>'
    '<p class="ts-lost ts-warn" hidden role="alert">The connection is lost. The job goes on; this page tries '
    "again by itself.</p>"
    '<p class="ts-quiet ts-slot-where" data-live="where"></p>'
    '<div data-live="stages" id="stages" class="ts-slot-stages"></div>'
    '<div data-live="outcome" id="outcome"></div><details class="ts-details" open><summary>Log</summary>'
    '<div data-live="log" class="ts-slot-log"></div></details>'
)
_RIGHT = (
    '<div data-live="plan" id="plan"></div><div data-live="picture" id="picture"></div>'
    '<article data-live="card" id="card" tabindex="0" aria-label="Card"></article>'
)
_LOOK = "() => window.dispatchEvent(new Event('ts-look'))"


@dataclass(frozen=True)
class Handlers:
    """What the page's buttons do; the job is the one that the page's address names."""

    service: Service

    def cancel(self, request: gr.Request) -> str:
        """Ask the job to stop; a refusal in words."""
        return self._do(self.service.cancel, request)

    def retry(self, request: gr.Request) -> str:
        """Queue the job again; a refusal in words."""
        return self._do(self.service.retry, request)

    def _do(self, action: Callable[..., Job], request: gr.Request) -> str:
        try:
            job_id = str(request.query_params.get("id", ""))
            if not job_id:
                raise BadInput("this address names no job; open one from the queue")
            action(job_id, viewer=visitor(request).viewer)
        except TricksmithError as error:
            return parts.problem(str(error))
        return ""


def build(service: Service) -> None:
    """Lay out the job page in the current Blocks."""
    on = Handlers(service)
    gr.HTML(parts.brand())
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            gr.HTML(_LEFT, js_on_load=live_script("live/job"), elem_id="live")
            # Which of the two is shown is told by `live`, too.
            with gr.Row(elem_classes=["ts-actions", "ts-slot-actions"]):
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                retry = gr.Button("Retry", variant="primary", elem_id="retry", elem_classes="ts-once")
            problem = gr.HTML(elem_id="problem")
        with gr.Column(scale=3, min_width=320):
            gr.HTML(_RIGHT, elem_id="papers")
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 16, "api_visibility": "private"}
    cancel.click(on.cancel, None, problem, **quiet).then(None, None, None, js=_LOOK)
    retry.click(on.retry, None, problem, **quiet).then(None, None, None, js=_LOOK)
