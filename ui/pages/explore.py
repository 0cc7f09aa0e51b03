"""The first page: which model, what each trick would do to it, and then: convert.

Nothing but config and headers is read before somebody presses “Convert”. The page's address names model and
recipe, so that it can be shared, and so that the browser's back button leads to what was looked at before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from service.api import Service
from service.settings import signs_in
from ui.pages import limits, options, parts, plots
from ui.pages import sign_in as signing
from ui.pages.escape import esc
from ui.pages.exploring import FIRST, LONGEST, Handlers, address
from ui.pages.words import in_order

_EXAMPLES = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "openai-community/gpt2")
_STEPS = (
    (
        "See",
        "Name a model, or search for one. Its config and headers are read, no weight: in seconds you see"
        " which tricks fit, and what each would save.",
    ),
    ("Watch", "Convert it. The work streams through a worker, and its page shows every stage as it runs."),
    (
        "Trust",
        "The result is measured against its source. Only what proves to be the same model is published.",
    ),
)
_STALE = "The request has changed. “Show plan” again to see what it would do now."
_GO = "(id) => { if (id) window.location.assign('job?id=' + encodeURIComponent(id)); }"
_ADDRESS = (
    "(q) => { if (q && q !== window.location.search) "
    "window.history.pushState(null, '', window.location.pathname + q); }"
)
# What was asked for stands below the form on a phone, and on a low screen above the button.
_THERE = (
    "() => { const at = document.querySelector('#facts'), { top } = at.getBoundingClientRect(); "
    "if (top < 0 || top > window.innerHeight) at.scrollIntoView(); }"
)
# What stands in the field by now: Gradio would tell of the key that came first while an answer was out.
_TYPED = "() => [document.querySelector('#model input').value]"
_CHANGED = f"() => [{json.dumps(parts.hint(_STALE))}, {{ __type__: 'update', interactive: false }}]"


def _empty(folders: bool) -> str:
    """The page before a model is named: how it goes, and models to begin with."""
    steps = "".join(f"<li><b>{esc(name)}</b> {esc(text)}</li>" for name, text in _STEPS)
    here = [path for path in (Path("models/tiny-llama"),) if folders and (path / "config.json").is_file()]
    links = "".join(
        f'<a href="{esc(address(name, list(FIRST)))}">{esc(name)}</a>'
        for name in (*(f"./{path}" for path in here), *_EXAMPLES)
    )
    return f'<section class="ts-empty"><ol>{steps}</ol><p>Begin with {links}</p></section>'


def _picker() -> gr.FileExplorer:
    with gr.Accordion("A folder of this machine", open=False):
        return gr.FileExplorer(
            glob="**/config.json",
            root_dir=Path.cwd(),
            file_count="single",
            label="Its config.json",
            height=220,
        )


def build(page: gr.Blocks, service: Service, *, folders: bool) -> None:
    """Lay out the page in the current Blocks. `folders`: whether local paths may be named."""
    gr.HTML(parts.brand())
    seen, named = gr.State(None), gr.State(False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            sign_in = signing.build()
            model = gr.Dropdown(
                choices=[],
                value=None,
                allow_custom_value=True,
                label="Model",
                info="A Hub id, with @revision if you like" + ("; or a local folder" if folders else ""),
                elem_id="model",
            )
            picker = _picker() if folders else None
            tricks = gr.CheckboxGroup(choices=in_order(), value=list(FIRST), label="Tricks", elem_id="tricks")
            chosen = options.build(FIRST)
            with gr.Row(elem_classes="ts-actions"):
                show = gr.Button("Show plan", variant="secondary", elem_id="show-plan")
            to = gr.Textbox(
                label="Destination",
                placeholder="your-name/SmolLM2-135M-FlashNorm",
                info="NAMESPACE/NAME on the Hub"
                + (
                    "; or a local folder"
                    if folders
                    else "; empty: a new repo of yours, named after the model"
                ),
                elem_id="to",
                max_length=LONGEST,
            )
            evidence = gr.Radio(
                choices=[(f"{name}: {about}", name) for name, about in service.recipes().items()],
                value="quick",
                label="Evidence",
                info="How much is measured against the source before anything may be published",
                elem_id="evidence",
            )
            takes = gr.HTML(elem_id="takes")
            with gr.Row():
                pr = gr.Checkbox(label="As a pull request", elem_id="pr", visible=not signs_in())
                private = gr.Checkbox(label="Private repo", elem_id="private")
            with gr.Row(elem_classes="ts-actions"):
                submit = gr.Button(
                    "Convert", variant="primary", interactive=False, elem_id="submit", elem_classes="ts-once"
                )
            gr.HTML(limits.told(service.settings.limits), elem_id="limits")
            problem = gr.HTML(elem_id="problem")
            job = gr.Textbox(visible=False)
            at = gr.Textbox(visible="hidden")
        with gr.Column(scale=3, min_width=320):
            facts = gr.HTML(_empty(folders), elem_id="facts")
            cards = gr.HTML(elem_id="cards")
            plan = gr.HTML(elem_id="plan")
            wiring = gr.HTML(elem_id="wiring")
            drawn = plots.build()

    on = Handlers(service, folders, chosen)
    asked = [model, tricks, *chosen.components]
    shown = [
        facts,
        wiring,
        cards,
        drawn.weights,
        drawn.batch,
        drawn.cache,
        drawn.reads,
        plan,
        problem,
        submit,
        at,
        seen,
    ]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    # Not `explore`: programs ask for that name.
    def look_at(request: gr.Request, batch: str, *values: Any) -> Iterator[list[Any]]:
        yield from on.show(batch, *values, request)

    def convert(request: gr.Request, *values: Any) -> tuple[str, str]:
        return on.submit(*values, request)

    look: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "explore", **quiet}
    looked = gr.on(
        [show.click, model.select],
        look_at,
        [drawn.batch, *asked],
        shown,
        trigger_mode="always_last",
        **look,
    )
    show.click(None, None, None, js=_THERE, **quiet)
    at.change(None, at, None, js=_ADDRESS)
    opening = page.load(on.opened, None, [named, *asked, *chosen.groups.values()], **quiet)
    opened = opening.then(_where_named(look_at, len(shown)), [named, drawn.batch, *asked], shown, **look)
    # After the plan, which people wait for, not beside it.
    for before in (looked, opened):
        before.then(on.estimate, [model, evidence], takes, **quiet)
    evidence.input(on.estimate, [model, evidence], takes, trigger_mode="always_last", **quiet)
    drawn.batch.input(on.rebatch, [drawn.batch, seen], drawn.cache, **quiet)
    model.key_up(
        on.suggest, model, model, js=_TYPED, concurrency_limit=8, trigger_mode="always_last", **quiet
    )
    tricks.input(
        chosen.shown, tricks, list(chosen.groups.values()), queue=False, trigger_mode="always_last", **quiet
    )
    if picker is not None:
        picker.change(lambda path: str(Path(path).parent) if path else gr.skip(), picker, model, **quiet)
    # A plan that is not of this request must not stand beside an open button. In the browser alone: what a
    # server says of it may come after the next plan.
    gr.on(
        [component.input for component in asked],  # type: ignore[attr-defined]
        None,
        None,
        [plan, submit],
        js=_CHANGED,
        **quiet,
    )
    submitted = submit.click(
        convert,
        [at, model, tricks, to, pr, private, evidence, *chosen.components],
        [job, problem],
        concurrency_limit=4,
        trigger_mode="once",
        **quiet,
    )
    submitted.then(None, job, None, js=_GO)
    if sign_in is not None:
        submitted.then(signing.relabel, None, sign_in, **quiet)
        signing.keep_draft(page, sign_in, [model, tricks, to, private, evidence])


def _where_named(look_at: Any, outputs: int) -> Any:
    """`look_at` where the page was opened with a model. What is typed before the page is all there is not it:
    looked at twice, its plan and its button would come, go and come again."""

    def opened(request: gr.Request, named: bool, batch: str, *values: Any) -> Iterator[list[Any]]:
        if named:
            yield from look_at(request, batch, *values)
        else:
            yield [gr.skip()] * outputs

    return opened
