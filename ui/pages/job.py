"""A job's own page, `job?id=...`: stages, verdict, card. Each tick asks the service anew, so that the page is
live after a reload, and after a restart of the server, as it was before."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import gradio as gr

from service.api import Service
from service.jobs import Job, State
from tricks import TricksmithError
from ui.pages import parts
from ui.rates import per_second, recent

_TICK_S = 0.7
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_IMAGE = re.compile(r"!(?=\[)")


@dataclass(frozen=True)
class Handlers:
    """What the page shows and does; the job is the one that the page's address names."""

    service: Service

    def show(self, seen: str, request: gr.Request) -> list[Any]:
        """(seen, head, stages, outcome, card, cancel button, retry button), skipped where nothing changed."""
        job_id = str(request.query_params.get("id", ""))
        try:
            job = self.service.job(job_id)
        except TricksmithError as error:
            gone = parts.problem(
                str(error) if job_id else "this address names no job; open one from the list of jobs"
            )
            return [gone, gone, "", "", *_buttons(None), ""]
        return self._show(job, seen)

    def _show(self, job: Job, seen: str) -> list[Any]:
        now = repr((job.state, job.stage, job.progress, job.attempts, job.cancel))
        if job.state.final and now == seen:
            return [gr.skip()] * 7
        running = job.state is State.RUNNING
        speed = per_second(recent(self.service, job.id)) if running and job.progress else None
        evidence = self.service.evidence(job.id)
        card = self.service.card(job.id) if job.state.final else None
        return [
            now,
            parts.job_head(job, time.time()),
            parts.stages(job, speed),
            parts.outcome(job, evidence),
            *_buttons(job),
            _card(card),
        ]

    def cancel(self, request: gr.Request) -> str:
        """Ask the job to stop; a refusal in words."""
        return self._do(self.service.cancel, request)

    def retry(self, request: gr.Request) -> str:
        """Queue the job again; a refusal in words."""
        return self._do(self.service.retry, request)

    @staticmethod
    def _do(action: Any, request: gr.Request) -> str:
        try:
            action(str(request.query_params.get("id", "")))
        except TricksmithError as error:
            return parts.problem(str(error))
        return ""


def _buttons(job: Job | None) -> tuple[Any, Any]:
    can_cancel = job is not None and not job.state.final
    can_retry = job is not None and job.state in (State.FAILED, State.CANCELLED)
    stopping = job is not None and can_cancel and job.cancel
    return (
        gr.update(visible=can_cancel, interactive=not stopping, value="Stopping …" if stopping else "Cancel"),
        gr.update(visible=can_retry),
    )


def _card(card: str | None) -> Any:
    """The card, once there is one."""
    if card is None:
        return gr.update(value="", visible=False)
    return gr.update(value=readable(card), visible=True)


def readable(card: str) -> str:
    """A card without metadata, whose HTML is shown as text and whose pictures are links.

    The component that shows it sanitises too; this keeps it from fetching anything from afar.
    """
    pieces = _CODE.split(_FRONT_MATTER.sub("", card))
    pieces[::2] = [_IMAGE.sub("", text).replace("<", "&lt;") for text in pieces[::2]]
    return "".join(pieces)


def build(page: gr.Blocks, service: Service) -> None:
    """Lay out the job page in the current Blocks."""
    on = Handlers(service)
    gr.HTML(parts.brand())
    seen = gr.State("")
    head = gr.HTML(elem_id="job-head")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            stages = gr.HTML(elem_id="stages")
            with gr.Row(elem_classes="ts-actions"):
                cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
                retry = gr.Button("Retry", variant="primary", visible=False, elem_id="retry")
            problem = gr.HTML(elem_id="problem")
        with gr.Column(scale=3, min_width=320):
            outcome = gr.HTML(elem_id="outcome")
    card = gr.Markdown(visible=False, sanitize_html=True, latex_delimiters=[], elem_id="card")
    shown = [seen, head, stages, outcome, cancel, retry, card]
    # Many open pages at once: one tick is a few Redis reads, so they need not wait for each other.
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 32, "api_visibility": "private"}
    page.load(on.show, seen, shown, **quiet)
    gr.Timer(_TICK_S).tick(on.show, seen, shown, trigger_mode="once", **quiet)
    cancel.click(on.cancel, None, problem, **quiet).then(on.show, seen, shown, **quiet)
    retry.click(on.retry, None, problem, **quiet).then(on.show, seen, shown, **quiet)
