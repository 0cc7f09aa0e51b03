"""A job's own page, `job?id=...`: stages as they go, the plan, what was measured, the card, the log.

What changes by the second comes from `live` and never passes through Gradio; plots, plan and card come
through it whenever the job enters another state or stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas as pd

from service.api import Service
from service.jobs import Job, State
from tricks import BadInput, TricksmithError
from ui.pages import charts, parts
from ui.pages.script import live_script
from ui.pages.visitor import visitor

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_IMAGE = re.compile(r"!(?=\[)")
_LEFT = (
    '<div data-live="head" class="ts-slot-head"></div><p class="ts-sr" role="status" data-live="said"></p>'
    '<p class="ts-lost ts-warn" hidden role="alert">The connection is lost. The job goes on; this page tries '
    "again by itself.</p>"
    '<p class="ts-quiet ts-slot-where" data-live="where"></p>'
    '<div data-live="stages" id="stages" class="ts-slot-stages"></div>'
    '<div data-live="outcome" id="outcome"></div><details class="ts-details" open><summary>Log</summary>'
    '<div data-live="log" class="ts-slot-log"></div></details>'
)


@dataclass(frozen=True)
class Handlers:
    """What the page shows and does; the job is the one that the page's address names."""

    service: Service

    def papers(self, request: gr.Request) -> list[Any]:
        """(cancel, retry, three plots, plan, card) as they are now."""
        try:
            job = self._job(request)
            mine = visitor(request).owns(job)
            evidence = self.service.evidence(job.id)
            plan = self.service.job_plan(job.id)
            card = self.service.card(job.id)
        except TricksmithError:
            return [*_buttons(None, False), *[gr.skip()] * 5]
        # What is not there yet stays as it is: an update of a hidden plot costs more than all the rest, and
        # all open pages of a job ask at the same time.
        plots: list[Any] = [gr.skip()] * 3
        if evidence is not None:
            drawings = (charts.divergences(evidence), charts.layers(evidence), charts.losses(evidence))
            plots = [charts.drawn(frame) for frame in drawings]
        shown = gr.skip() if plan is None else parts.plan_view(plan)
        return [
            *_buttons(job, mine),
            *plots,
            shown,
            gr.skip() if card is None else gr.update(value=readable(card), visible=True),
        ]

    def _job(self, request: gr.Request) -> Job:
        job_id = str(request.query_params.get("id", ""))
        if not job_id:
            raise BadInput("this address names no job; open one from the queue")
        return self.service.job(job_id, viewer=visitor(request).viewer)

    def cancel(self, request: gr.Request) -> str:
        """Ask the job to stop; a refusal in words."""
        return self._do(self.service.cancel, request)

    def retry(self, request: gr.Request) -> str:
        """Queue the job again; a refusal in words."""
        return self._do(self.service.retry, request)

    def _do(self, action: Callable[..., Job], request: gr.Request) -> str:
        try:
            job = self._job(request)
            action(job.id, viewer=visitor(request).viewer)
        except TricksmithError as error:
            return parts.problem(str(error))
        return ""


def _buttons(job: Job | None, mine: bool) -> tuple[Any, Any]:
    can_cancel = mine and job is not None and not job.state.final
    can_retry = mine and job is not None and job.state in (State.FAILED, State.CANCELLED)
    stopping = job is not None and can_cancel and job.cancel
    return (
        gr.update(visible=can_cancel, interactive=not stopping, value="Stopping …" if stopping else "Cancel"),
        gr.update(visible=can_retry),
    )


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
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            live = gr.HTML(_LEFT, js_on_load=live_script("live/job"), elem_id="live")
            with gr.Row(elem_classes="ts-actions"):
                cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
                retry = gr.Button(
                    "Retry", variant="primary", visible=False, elem_id="retry", elem_classes="ts-once"
                )
            problem = gr.HTML(elem_id="problem")
        with gr.Column(scale=3, min_width=320):
            plan = gr.HTML(elem_id="plan")
            plots = _plots()
            card = gr.Markdown(visible=False, sanitize_html=True, latex_delimiters=[], elem_id="card")
    shown = [cancel, retry, *plots, plan, card]
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 16, "api_visibility": "private"}
    gr.on([page.load, live.submit], on.papers, None, shown, **quiet)
    cancel.click(on.cancel, None, problem, **quiet).then(on.papers, None, shown, **quiet)
    retry.click(on.retry, None, problem, **quiet).then(on.papers, None, shown, **quiet)


def _plots() -> list[gr.components.Component]:
    return [
        gr.LinePlot(
            pd.DataFrame(columns=["position", "nats", "which"]),
            x="position",
            y="nats",
            color="which",
            label="How far the two models' predictions are apart, by position in the text",
            x_title="position in the window",
            y_title="KL divergence, nats",
            y_axis_format=".0e",
            height=280,
            visible=False,
            elem_id="chart-divergence",
        ),
        gr.LinePlot(
            pd.DataFrame(columns=["layer", "error", "which"]),
            x="layer",
            y="error",
            color="which",
            label="Error behind each layer, against the source's own rounding",
            x_title="layer",
            y_title="relative error",
            y_axis_format=".0e",
            height=280,
            visible=False,
            elem_id="chart-layers",
        ),
        gr.ScatterPlot(
            pd.DataFrame(columns=["source", "converted"]),
            x="source",
            y="converted",
            label="Loss of each token: on the diagonal, both models say the same",
            x_title="source, nats",
            y_title="converted, nats",
            height=280,
            visible=False,
            elem_id="chart-losses",
        ),
    ]
