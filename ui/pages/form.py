"""The form: which model, which tricks, where to; the plan is shown before anything can be submitted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import gradio as gr

from service.api import Service
from tricks import TRICKS, BadInput, TricksmithError
from ui.pages import parts
from ui.pages.guard import check_folders

_EMPTY = (
    "Name a model and choose tricks. “Show plan” reads its config and headers only: no weight is downloaded."
)
_STALE = "The request has changed. “Show plan” again to see what it would do now."
_OURS = "something broke on our side; what you typed is kept: try again, or see the server's log"
_GO = "(id) => { if (id) window.location.assign('job?id=' + encodeURIComponent(id)); }"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handlers:
    """What the form's buttons do."""

    service: Service
    folders: bool

    def show_plan(self, model: str, tricks: list[str]) -> tuple[str, str, dict[str, object]]:
        """(plan, problem, submit button) for the request as it stands."""
        try:
            model, tricks = _asked(model, tricks)
            check_folders(self.folders, model=model)
            plan = self.service.plan(model, tricks)
        except TricksmithError as error:
            return "", parts.problem(str(error)), gr.update(interactive=False)
        except Exception:
            log.exception("planning %r failed", model)
            return "", parts.problem(_OURS), gr.update(interactive=False)
        return parts.plan_view(plan), "", gr.update(interactive=plan.fits)

    def submit(self, model: str, tricks: list[str], to: str, pr: bool, private: bool) -> tuple[str, str]:
        """(job id, problem); one of the two is empty."""
        try:
            model, tricks = _asked(model, tricks)
            if not to.strip():
                raise BadInput("no destination; give NAMESPACE/NAME on the Hub, or a folder")
            check_folders(self.folders, model=model, to=to.strip())
            return self.service.submit(model, tricks, to.strip(), pr=pr, private=private).id, ""
        except TricksmithError as error:
            return "", parts.problem(str(error))
        except Exception:
            log.exception("submitting %r failed", model)
            return "", parts.problem(_OURS)


def _asked(model: str, tricks: list[str]) -> tuple[str, list[str]]:
    if not model.strip():
        raise BadInput("no model; give a Hub id such as HuggingFaceTB/SmolLM2-135M")
    if not tricks:
        raise BadInput("no trick is chosen; choose one or more")
    return model.strip(), list(tricks)


def build(service: Service, *, folders: bool) -> None:
    """Lay out the form in the current Blocks. `folders`: whether local paths may be named."""
    on = Handlers(service, folders)
    gr.HTML(parts.brand())
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            model = gr.Textbox(
                label="Model",
                placeholder="HuggingFaceTB/SmolLM2-135M",
                info="A Hub id, with @revision if you like" + ("; or a local folder" if folders else ""),
                elem_id="model",
                max_length=500,
            )
            tricks = gr.CheckboxGroup(
                choices=list(TRICKS), value=["flashnorm"], label="Tricks", elem_id="tricks"
            )
            to = gr.Textbox(
                label="Destination",
                placeholder="your-name/SmolLM2-135M-flashnorm",
                info="NAMESPACE/NAME on the Hub" + ("; or a local folder" if folders else ""),
                elem_id="to",
                max_length=500,
            )
            with gr.Row():
                pr = gr.Checkbox(label="As a pull request", elem_id="pr")
                private = gr.Checkbox(label="Private repo", elem_id="private")
            with gr.Row(elem_classes="ts-actions"):
                show = gr.Button("Show plan", variant="secondary", elem_id="show-plan")
                submit = gr.Button("Convert", variant="primary", interactive=False, elem_id="submit")
            problem = gr.HTML(elem_id="problem")
            job = gr.Textbox(visible=False)
        with gr.Column(scale=3, min_width=320):
            plan = gr.HTML(parts.hint(_EMPTY), elem_id="plan")

    gr.on(
        [show.click, model.submit],
        on.show_plan,
        [model, tricks],
        [plan, problem, submit],
        show_progress_on=plan,
        concurrency_limit=2,
        api_visibility="private",
    )
    # A plan that is not of this request must not stand beside an open button.
    gr.on(
        [model.input, tricks.input],
        lambda: (parts.hint(_STALE), gr.update(interactive=False)),
        None,
        [plan, submit],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    submit.click(
        on.submit,
        [model, tricks, to, pr, private],
        [job, problem],
        concurrency_limit=4,
        api_visibility="private",
    ).then(None, job, None, js=_GO)
