"""The first page: which model, what each trick would do to it, and then: convert.

Nothing but config and headers is read before somebody presses “Convert”. The page's address names model and
recipe, so that it can be shared, and so that the browser's back button leads to what was looked at before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from service.api import Service
from service.evidence_request import EvidenceRequest
from service.explore import QUICK, Explored
from tricks import TRICKS, BadInput, TricksmithError
from ui.pages import charts, found, limits, options, parts
from ui.pages import sign_in as signing
from ui.pages.escape import esc
from ui.pages.guard import check_folders
from ui.pages.visitor import signs_in, visitor
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
_OURS = "something broke on our side; what you typed is kept: try again, or see the server's log"
_READING = "Reading config and headers …"
_PROVING = "Proving the plan on a small model of the same class …"
_GO = "(id) => { if (id) window.location.assign('job?id=' + encodeURIComponent(id)); }"
_ADDRESS = (
    "(q) => { if (q && q !== window.location.search) "
    "window.history.pushState(null, '', window.location.pathname + q); }"
)
_FIRST = ("flashnorm",)
_LONGEST = 300  # characters of a model's or destination's name
_SAME: list[Any] = [gr.skip()] * 7
"""Facts, wiring, cards and plots, left as they are."""
_REST: list[Any] = [gr.skip()] * 5
"""Plan, problem, button, address and what was seen, left as they are."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handlers:
    """What the page's fields and buttons do."""

    service: Service
    folders: bool
    options: options.Options

    def suggest(self, key: gr.KeyUpData) -> Any:
        """Models whose name holds what was typed so far."""
        words = key.input_value or ""
        if len(words.strip()) < 2 or words.startswith((".", "/", "~")):
            return gr.skip()
        try:
            hits = self.service.search(words)
        except TricksmithError:
            return gr.skip()  # suggestions are a convenience: the name can be typed all the same
        return gr.update(choices=[(f"{hit.model}  ({hit.downloads:,} downloads)", hit.model) for hit in hits])

    def show(self, batch: str, model: str, chosen: list[str], *values: Any) -> Iterator[list[Any]]:
        """All that is shown, step by step: what headers tell, the plan with its proof, the other tricks."""
        asker, off = visitor(values[-1]), gr.update(interactive=False)
        try:
            model, recipe = self._asked(model, chosen, values[:-1])
            check_folders(self.folders, model=model)
            yield [parts.waiting(_READING), *_SAME[1:], "", "", off, "", None]
            quick = [name for name in TRICKS if name in (*QUICK, *chosen)]
            seen = self.service.explore(model, asker.token, quick)
            address = _address(model, recipe)
            yield [*self._first(seen, int(batch)), parts.waiting(_PROVING), "", off, address, seen]
            ready = self.service.preflight(model, recipe, asker.token)
            plan = parts.plan_view(ready.plan) + found.before(ready)
            yield [*_SAME, plan, "", gr.update(interactive=ready.plan.fits), gr.skip(), gr.skip()]
            if len(quick) < len(TRICKS) and (seen.figures.layers or 0) <= found.DEEPEST:
                seen = self.service.explore(model, asker.token)
                yield [*self._first(seen, int(batch)), *_REST[:-1], seen]
        except TricksmithError as error:
            yield [*_SAME, "", parts.problem(str(error)), off, "", gr.skip()]
        except Exception:
            log.exception("planning %r failed", model)
            yield [*_SAME, "", parts.problem(_OURS), off, "", gr.skip()]

    def estimate(self, model: str, recipe: str, request: gr.Request) -> str:
        """How long conversion and evidence would take, in words; nothing while that is not known."""
        try:
            model = str(model or "").strip()
            check_folders(self.folders, model=model)
            asker = visitor(request)
            seconds = self.service.estimate(model, EvidenceRequest(recipe), asker.token)
        except TricksmithError:
            return ""  # what is wrong is said where the plan is asked for
        return found.takes(seconds)

    def _first(self, seen: Explored, batch: int) -> list[Any]:
        plans = [(look.trick.name, look.plan) for look in seen.looks if look.plan is not None and look.fits]
        return [
            found.facts(seen),
            found.wiring(seen),
            found.cards(seen),
            charts.bars(charts.weights(seen)),
            gr.update(visible=seen.figures.cache_per_token is not None),
            charts.drawn(charts.cache(seen.figures, plans, batch)),
            charts.bars(charts.reads(plans)),
        ]

    def rebatch(self, batch: str, seen: Explored | None) -> Any:
        """The cache chart at another batch size."""
        if seen is None:
            return gr.skip()
        plans = [(look.trick.name, look.plan) for look in seen.looks if look.plan is not None and look.fits]
        return charts.drawn(charts.cache(seen.figures, plans, int(batch)))

    def submit(
        self,
        planned: str,
        model: str,
        chosen: list[str],
        to: str,
        pr: bool,
        private: bool,
        evidence: str,
        *values: Any,
    ) -> tuple[str, str]:
        """(job id, problem); one of the two is empty."""
        try:
            model, recipe = self._asked(model, chosen, values[:-1])
            if planned != _address(model, recipe):
                raise BadInput("the request has changed since its plan was shown; “Show plan” again")
            asker = visitor(values[-1])
            asker.check_signed_in()
            to = (to or "").strip()
            if not to and asker.operator:
                raise BadInput("no destination; give NAMESPACE/NAME on the Hub, or a folder")
            check_folders(self.folders, model=model, **({"to": to} if to else {}))
            asked = EvidenceRequest(evidence)
            job = self.service.submit(
                model, recipe, to or None, pr=pr, private=private, grant=asker.grant, evidence=asked
            )
            return job.id, ""
        except TricksmithError as error:
            return "", parts.problem(str(error))
        except Exception:
            log.exception("submitting %r failed", model)
            return "", parts.problem(_OURS)

    def _asked(self, model: str, chosen: list[str], values: tuple[Any, ...]) -> tuple[str, list[str]]:
        model = str(model or "").strip()
        if not model:
            raise BadInput("no model; give a Hub id such as HuggingFaceTB/SmolLM2-135M")
        if len(model) > _LONGEST:
            raise BadInput(f"this name has {len(model):,} characters; a Hub id has up to 200")
        if not chosen:
            raise BadInput("no trick is chosen; choose one or more")
        return model, self.options.recipe(chosen, values)

    def opened(self, request: gr.Request) -> list[Any]:
        """(model, tricks, option values, groups) of a shared address; as they are where it names no model."""
        query = request.query_params
        model = str(query.get("model", ""))[:_LONGEST]
        if not model:
            return [gr.skip()] * (2 + len(self.options.fields) + len(self.options.groups))
        recipe = [text[:_LONGEST] for text in query.getlist("trick")] or list(_FIRST)
        chosen, values = self.options.values(recipe)
        return [model, chosen, *values, *self.options.shown(chosen)]


def _address(model: str, recipe: list[str]) -> str:
    """The shared address of a model and recipe, from its question mark on."""
    return "?" + urlencode([("model", model), *(("trick", text) for text in recipe)])


def _empty(folders: bool) -> str:
    """The page before a model is named: how it goes, and models to begin with."""
    steps = "".join(f"<li><b>{esc(name)}</b> {esc(text)}</li>" for name, text in _STEPS)
    here = [path for path in (Path("models/tiny-llama"),) if folders and (path / "config.json").is_file()]
    links = "".join(
        f'<a href="{esc(_address(name, list(_FIRST)))}">{esc(name)}</a>'
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
    seen = gr.State(None)
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
            tricks = gr.CheckboxGroup(
                choices=in_order(), value=list(_FIRST), label="Tricks", elem_id="tricks"
            )
            chosen = options.build(_FIRST)
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
                max_length=_LONGEST,
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
            address = gr.Textbox(visible="hidden")
        with gr.Column(scale=3, min_width=320):
            facts = gr.HTML(_empty(folders), elem_id="facts")
            cards = gr.HTML(elem_id="cards")
            plan = gr.HTML(elem_id="plan")
            wiring = gr.HTML(elem_id="wiring")
            plots = _plots()

    on = Handlers(service, folders, chosen)
    asked = [model, tricks, *chosen.components]
    shown = [
        facts,
        wiring,
        cards,
        plots.weights,
        plots.batch,
        plots.cache,
        plots.reads,
        plan,
        problem,
        submit,
        address,
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
        [show.click, model.select], look_at, [plots.batch, *asked], shown, trigger_mode="always_last", **look
    )
    address.change(None, address, None, js=_ADDRESS)
    opening = page.load(on.opened, None, [*asked, *chosen.groups.values()], **quiet)
    opened = opening.then(_unless_empty(look_at), [plots.batch, *asked], shown, **look)
    # After the plan, which people wait for, not beside it.
    for before in (looked, opened):
        before.then(on.estimate, [model, evidence], takes, **quiet)
    evidence.input(on.estimate, [model, evidence], takes, trigger_mode="always_last", **quiet)
    plots.batch.input(on.rebatch, [plots.batch, seen], plots.cache, **quiet)
    model.key_up(on.suggest, None, model, concurrency_limit=8, trigger_mode="always_last", **quiet)
    tricks.input(
        chosen.shown, tricks, list(chosen.groups.values()), queue=False, trigger_mode="always_last", **quiet
    )
    if picker is not None:
        picker.change(lambda path: str(Path(path).parent) if path else gr.skip(), picker, model, **quiet)
    # A plan that is not of this request must not stand beside an open button.
    gr.on(
        [component.input for component in asked],  # type: ignore[attr-defined]
        lambda: (parts.hint(_STALE), gr.update(interactive=False)),
        None,
        [plan, submit],
        queue=False,
        **quiet,
    )
    submitted = submit.click(
        convert,
        [address, model, tricks, to, pr, private, evidence, *chosen.components],
        [job, problem],
        concurrency_limit=4,
        trigger_mode="once",
        **quiet,
    )
    submitted.then(None, job, None, js=_GO)
    if sign_in is not None:
        submitted.then(signing.relabel, None, sign_in, **quiet)
        signing.keep_draft(page, sign_in, [model, tricks, to, private, evidence])


def _unless_empty(look_at: Any) -> Any:
    def opened(request: gr.Request, batch: str, *values: Any) -> Iterator[list[Any]]:
        if values[0]:
            yield from look_at(request, batch, *values)
        else:
            yield [*_SAME, *_REST]

    return opened


@dataclass(frozen=True)
class _Plots:
    batch: gr.Radio
    weights: gr.BarPlot
    cache: gr.LinePlot
    reads: gr.BarPlot


def _plots() -> _Plots:
    weights = gr.BarPlot(
        pd.DataFrame(columns=["model", "bytes"]),
        x="model",
        y="bytes",
        label="Weights",
        x_title=" ",
        y_title="bytes",
        height=240,
        visible=False,
        elem_id="chart-weights",
    )
    batch = gr.Radio(
        [str(n) for n in charts.BATCHES], value="1", label="Batch", elem_id="batch", visible=False
    )
    cache = gr.LinePlot(
        pd.DataFrame(columns=["context", "bytes", "model"]),
        x="context",
        y="bytes",
        color="model",
        label="Cache against context length",
        x_title="tokens of context",
        y_title="bytes",
        height=280,
        visible=False,
        elem_id="chart-cache",
    )
    reads = gr.BarPlot(
        pd.DataFrame(columns=["step", "reads"]),
        x="step",
        y="reads",
        label="Numbers read per step, before and after",
        x_title=" ",
        height=260,
        x_label_angle=-30,
        visible=False,
        elem_id="chart-reads",
    )
    return _Plots(batch, weights, cache, reads)
