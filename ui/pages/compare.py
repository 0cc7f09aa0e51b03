"""Compare: a prompt, and what source and converted model make of it, side by side.

The models run on a worker. What they write comes over `live/compare`, as a job's progress does: the page's
address names the comparison, so that a reload or a lost connection changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from service.api import Service
from service.comparing import LONGEST_PROMPT, MOST_NEW
from service.jobs import State
from service.settings import signs_in
from tricks import BadInput, TricksmithError
from ui.pages import parts
from ui.pages.script import live_script
from ui.pages.visitor import visitor

_PROMPT = "The three most important things to know about"
_NEW = 32
_LOOKED_AT = 200  # jobs
_BODY = (
    '<p class="ts-lost ts-warn" hidden role="alert">The connection is lost. The models go on; this page '
    'tries again by itself.</p><div data-live="sides" class="ts-slot-sides"></div>'
)
_SHOW = (
    # Not `q` alone: the page's base is the folder above, and so would its address be.
    "(q) => { if (!q) return; window.history.replaceState(null, '', window.location.pathname + q); "
    "window.dispatchEvent(new Event('ts-look')); }"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handlers:
    """What the page's fields and button do."""

    service: Service

    def opened(self, request: gr.Request) -> list[Any]:
        """(jobs to choose from, prompt, new tokens, button) as the page's address says."""
        asker, query = visitor(request), request.query_params
        try:
            jobs = self.service.jobs(_LOOKED_AT, viewer=asker.viewer)
            done = [job for job in jobs if job.state is State.PUBLISHED]
            chosen, prompt, new = str(query.get("job", "")), gr.skip(), gr.skip()
            if query.get("id"):
                asked, _ = self.service.comparison(str(query["id"]), viewer=asker.viewer)
                chosen, prompt, new = asked.job, asked.prompt, asked.new
        except TricksmithError:
            return [gr.skip()] * 4  # the live part says why
        choices = [
            (f"{_name(job.model)} → {_name(job.to)} ({', '.join(job.tricks)})", job.id) for job in done
        ]
        known = {job.id for job in done}
        value = chosen if chosen in known else done[0].id if done else None
        info = None if done else "Nothing is published yet: convert a model first"
        return [
            gr.update(choices=choices, value=value, info=info),
            prompt,
            new,
            gr.update(interactive=bool(done)),
        ]

    def ask(self, job_id: str | None, prompt: str, new: float, request: gr.Request) -> tuple[str, str]:
        """(the page's new address, problem); one of the two is empty."""
        try:
            if not job_id:
                raise BadInput("no conversion is chosen; choose one, or convert a model first")
            asker = visitor(request)
            asker.check_signed_in()
            viewer, grant = asker.viewer, asker.grant
            made = self.service.compare(job_id, prompt or "", int(new or 0), viewer=viewer, grant=grant)
        except TricksmithError as error:
            return "", parts.problem(str(error))
        return "?" + urlencode({"job": job_id, "id": made.id}), ""


def _name(place: str) -> str:
    return "/".join(place.rstrip("/").split("/")[-2:])


def build(page: gr.Blocks, service: Service) -> None:
    """Lay out the page in the current Blocks."""
    on = Handlers(service)
    gr.HTML(parts.brand())
    if signs_in():
        gr.LoginButton()
    with gr.Group():
        job = gr.Dropdown(choices=[], value=None, label="Conversion", elem_id="compared")
        prompt = gr.Textbox(
            value=_PROMPT,
            label="Prompt",
            info=f"Both models write on after it, the likeliest token each time; at most {LONGEST_PROMPT:,}"
            " characters",
            lines=3,
            max_length=LONGEST_PROMPT,
            elem_id="prompt",
        )
        new = gr.Slider(1, MOST_NEW, value=_NEW, step=1, label="New tokens", elem_id="new-tokens")
    with gr.Row(elem_classes="ts-actions"):
        go = gr.Button(
            "Compare", variant="primary", interactive=False, elem_id="compare", elem_classes="ts-once"
        )
    problem = gr.HTML(elem_id="problem")
    gr.HTML(_BODY, js_on_load=live_script("live/compare"), elem_id="sides")
    address = gr.Textbox(visible=False)
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 8, "api_visibility": "private"}
    page.load(on.opened, None, [job, prompt, new, go], **quiet)
    go.click(on.ask, [job, prompt, new], [address, problem], trigger_mode="once", **quiet).then(
        None, address, None, js=_SHOW
    )
