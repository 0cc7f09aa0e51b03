"""The gallery: converted models with their figures, to be filtered by name and trick."""

from __future__ import annotations

from typing import Any

import gradio as gr

from service.api import Service
from service.jobs import Job, State
from tricks import TricksmithError
from ui.pages import parts
from ui.pages.escape import esc, when
from ui.pages.visitor import Visitor, visitor
from ui.pages.words import in_order

_LOOKED_AT = 500  # jobs
_SHOWN = 60
_FIGURES = (
    "perplexity",
    "KL divergence in float32",
    "same best token, same best five",
    "live cache, measured",
)


def build(page: gr.Blocks, service: Service) -> None:
    """Lay out the gallery in the current Blocks."""

    def show(words: str, tricks: list[str], request: gr.Request) -> str:
        try:
            found = converted(service, visitor(request), words, tricks)
            cards = [_card(service, job) for job in found]
        except TricksmithError as error:
            return parts.problem(str(error))
        if not cards:
            return parts.hint("Nothing here yet that fits. Convert a model, or ask for less.")
        return f'<section class="ts-cards" aria-label="Converted models">{"".join(cards)}</section>'

    gr.HTML(parts.brand())
    with gr.Row():
        words = gr.Textbox(label="Name holds", max_length=100, min_width=280, elem_id="gallery-words")
        tricks = gr.CheckboxGroup(choices=in_order(), label="Tricks", min_width=280, elem_id="gallery-tricks")
    shown = gr.HTML(elem_id="gallery")
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 8, "api_visibility": "private"}
    gr.on([page.load, words.change, tricks.change], show, [words, tricks], shown, **quiet)


def converted(service: Service, asker: Visitor, words: str, tricks: list[str]) -> list[Job]:
    """The latest published jobs that this visitor may see and that fit."""
    jobs = service.jobs(_LOOKED_AT, viewer=asker.viewer)
    return [job for job in jobs if job.state is State.PUBLISHED and _fits(job, words, tricks)][:_SHOWN]


def figures(service: Service, job: Job) -> dict[str, str]:
    """The few figures of a job's evidence that a card has room for."""
    evidence = service.evidence(job.id)
    found = dict(evidence.headline()) if evidence else {}
    chosen = [name for name in _FIGURES if name in found] or list(found)[: len(_FIGURES)]
    return {name: found[name] for name in chosen}


def _fits(job: Job, words: str, tricks: list[str]) -> bool:
    names = {trick.partition(":")[0] for trick in job.tricks}
    return (words or "").strip().casefold() in f"{job.model} {job.to}".casefold() and names >= set(
        tricks or []
    )


def _card(service: Service, job: Job) -> str:
    rows = "".join(
        f"<p><b>{esc(name)}</b>: {esc(value)}</p>" for name, value in figures(service, job).items()
    )
    done = f'<p class="ts-quiet">{when(job.finished)}</p>' if job.finished else ""
    return (
        f'<article class="ts-card"><h3><a href="job?id={esc(job.id)}">{parts.short_name(job.to)}</a></h3>'
        f'<p class="ts-quiet">from {parts.short_name(job.model)} · {esc(", ".join(job.tricks))}</p>'
        f"<p>{esc(str(job.verdict or '').capitalize())}</p>{rows}"
        f'<p><a href="compare?job={esc(job.id)}">Compare</a></p>{done}</article>'
    )
