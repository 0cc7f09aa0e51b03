"""HTML pieces of the pages. Everything that comes from outside goes through `esc`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from service.jobs import Job, Stage, State
from tricks import Plan
from ui.pages.escape import breakable, esc, when
from ui.text import count, duration, group_places, proof_line, rate, reasons, savings_rows, share

if TYPE_CHECKING:  # evals brings torch
    from evals import Evidence

STAGES: dict[Stage, str] = {
    Stage.RESOLVE: "find the source, pin it to one commit",
    Stage.PLAN: "read config and headers, prove the plan",
    Stage.FETCH: "get the files the plan needs",
    Stage.CONVERT: "write the converted weights, shard by shard",
    Stage.VERIFY: "measure the result against its source",
    Stage.PUBLISH: "put it, with its card, where you want it",
}

_LOGO = (
    '<svg class="ts-logo" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8"/>'
    '<path d="M9 22h14M12 22l1.5-7h5L20 22M10 11h9l4 2.2-4 1.8h-9z"/>'
    '<path class="ts-spark" d="M25 5v5M22.5 7.5h5"/></svg>'
)


def brand() -> str:
    """What every page begins with."""
    return (
        f'<header class="ts-brand">{_LOGO}<div><h1>Tricksmith</h1>'
        "<p>The same model, less work. Nothing is published that was not measured against its source.</p>"
        "</div></header>"
    )


def problem(text: str) -> str:
    """A refusal, where the eye and a screen reader find it."""
    return f'<div class="ts-problem" role="alert">{esc(text)}</div>' if text else ""


def waiting(text: str) -> str:
    """What is going on, told to a screen reader too."""
    return f'<div class="ts-hint ts-waiting" role="status">{esc(text)}</div>'


def hint(text: str) -> str:
    """What to do on an empty page."""
    return f'<div class="ts-hint">{esc(text)}</div>'


def plan_view(plan: Plan) -> str:
    """Savings, proof, and for every place what is done or why not."""
    groups = group_places(plan.places)
    fitting = sum(g.size for g in groups if g.fits)
    head = (
        f'<h2>Plan <span class="ts-quiet">{esc(plan.architecture)}</span></h2>'
        f'<p class="ts-lead">{fitting:,} of {esc(count(len(plan.places), "place"))} will change'
        f"{_loss(plan) if fitting else ''}.</p>"
    )
    tiles = "".join(tile(name, value) for name, value in savings_rows(plan))
    rows = "".join(
        f'<tr class="{"ts-fits" if g.fits else "ts-misfit"}"><td>{esc(g.trick)}</td>'
        f"<td><code>{breakable(g.where)}</code>{_times(g.size)}</td>"
        f"<td>{'<b>fits</b>' if g.fits else '<b>does not fit</b>'}</td><td>{breakable(g.detail)}</td></tr>"
        for g in sorted(groups, key=lambda g: not g.fits)
    )
    table = (
        '<div class="ts-scroll" tabindex="0" role="region" aria-label="Places"><table class="ts-table">'
        '<thead><tr><th scope="col">Trick</th><th scope="col">Place</th><th scope="col">Fits</th>'
        f'<th scope="col">What is done, or why not</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    proof = f'<p class="ts-proof">{"✓ " if plan.proof is not None else ""}{esc(proof_line(plan))}</p>'
    return f'<section class="ts-plan">{head}<div class="ts-tiles">{tiles}</div>{proof}{table}</section>'


def _loss(plan: Plan) -> str:
    return "; lossless" if plan.lossless else "; approximate"


def short_name(model_or_place: str) -> str:
    """A Hub id as it is; of a folder its last two parts, the whole path on pointing at it."""
    if not model_or_place.startswith("/"):
        return breakable(model_or_place)
    short = "/".join(model_or_place.rstrip("/").split("/")[-2:])
    return f'<span title="{esc(model_or_place)}">{breakable(short)}</span>'


def _times(number: int) -> str:
    return f' <span class="ts-times">×{number}</span>' if number > 1 else ""


def tile(name: str, value: str) -> str:
    """A figure with its name."""
    return f'<div class="ts-tile"><span>{esc(name)}</span><strong>{esc(value)}</strong></div>'


def job_head(job: Job) -> str:
    """Which job this is, and its state."""
    if job.finished and job.started:
        took = f"took {duration(job.finished - job.started)}"
    else:
        took = "waiting for a worker" if job.state is State.QUEUED else ""
    flags = [word for word, on in (("pull request", job.pr), ("private", job.private)) if on]
    facts = [f"Job {job.id}", ", ".join(job.tricks), *([took] if took else []), *flags]
    if job.attempts > 1:
        facts.append(f"attempt {job.attempts}")
    told = " · ".join(_whole(fact) for fact in facts)
    return (
        f'<section class="ts-head"><div><h2>{short_name(job.model)} <span class="ts-arrow">→</span> '
        f'{short_name(job.to)}</h2><p class="ts-quiet">{told} · submitted {when(job.created)}</p></div>'
        f"{pill(job.state)}</section>"
    )


def _whole(fact: str) -> str:
    """Kept on one line, unless it is long itself: a line does not end between a number and its unit."""
    return f'<span class="ts-whole">{esc(fact)}</span>' if len(fact) <= 24 else esc(fact)


def pill(state: State) -> str:
    """A state as a coloured word."""
    return f'<span class="ts-pill ts-{esc(state)}">{esc(state)}</span>'


def stages(job: Job, per_second: float | None, took: Mapping[str, float] | None = None) -> str:
    """All stages of a job with the running one's progress, and how long (seconds) those before took."""
    order = list(STAGES)
    at = order.index(job.stage) if job.stage in order else -1
    done_all = job.state is State.PUBLISHED
    items = []
    for number, stage in enumerate(order):
        here = number == at and not done_all
        kind = "done" if done_all or number < at else _now(job.state) if here else "todo"
        bar = _bar(job, stage, per_second) if here and job.state is State.RUNNING else ""
        current = ' aria-current="step"' if here else ""
        time = f" <small>{esc(duration((took or {})[stage]))}</small>" if stage in (took or {}) else ""
        items.append(
            f'<li class="ts-stage ts-{kind}"{current}><i aria-hidden="true">{_MARKS[kind]}</i>'
            f"<div><b>{esc(stage)}</b> <span>{esc(STAGES[stage])}</span>"
            f"{time if kind == 'done' else ''}{bar}</div></li>"
        )
    return f'<ol class="ts-stages" aria-label="Stages">{"".join(items)}</ol>'


_MARKS = {"done": "✓", "now": "●", "bad": "✕", "todo": "○"}


def _now(state: State) -> str:
    return "bad" if state.final else "now"


def _bar(job: Job, stage: Stage, per_second: float | None) -> str:
    if not job.progress:
        return '<div class="ts-bar ts-busy"><em></em></div><small>&nbsp;</small>'
    unit, done, total = job.progress
    part = min(1.0, done / total) if total else 0.0
    words = share(unit, done, total)
    if per_second:
        words += f" · {rate(unit, per_second)}"
    return (
        f'<div class="ts-bar" role="progressbar" aria-label="{esc(stage)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{round(part * 100)}"><em style="width:{part:.1%}"></em></div>'
        f"<small>{esc(words)}</small>"
    )


def outcome(job: Job, evidence: Evidence | None) -> str:
    """The verdict with its reasons in words and its figures; or why there is none."""
    if job.state in (State.FAILED, State.CANCELLED):
        word = "Cancelled" if job.state is State.CANCELLED else "Failed"
        reason = job.reason or (
            "stopped on request" if job.state is State.CANCELLED else "no reason was recorded"
        )
        return f'<section class="ts-verdict ts-no"><h2>{word}</h2><p>{esc(reason)}</p></section>'
    if evidence is None:
        return ""
    good = evidence.verdict.publishable
    why = "".join(f"<li>{esc(reason)}</li>" for reason in reasons(evidence))
    where = (
        f'<p class="ts-where">Published: {_link(job.result)}</p>'
        f'<p><a href="compare?job={esc(job.id)}">Watch both models write, side by side</a></p>'
        if job.result
        else ""
    )
    return (
        f'<section class="ts-verdict {"ts-yes" if good else "ts-no"}">'
        f"<h2>{'✓' if good else '✕'} {esc(str(evidence.verdict).capitalize())}</h2>"
        f"<ul>{why}</ul>{figures(evidence.headline())}{where}</section>"
    )


_FIRST_FIGURES = ("perplexity", "same best token", "greedy generation", "live cache")


def figures(rows: Sequence[tuple[str, str]]) -> str:
    """What says most to somebody who has read no paper; the rest where it is asked for."""
    first = [row for row in rows if row[0].startswith(_FIRST_FIGURES)]
    rest = [row for row in rows if row not in first]
    if not first or not rest:
        return _figure_table(rows)
    said = esc(count(len(rest), "more figure"))
    more = f'<details class="ts-details"><summary>{said}</summary>{_figure_table(rest)}</details>'
    return _figure_table(first) + more


def _figure_table(rows: Sequence[tuple[str, str]]) -> str:
    shown = "".join(f'<tr><th scope="row">{esc(name)}</th><td>{esc(value)}</td></tr>' for name, value in rows)
    return f'<table class="ts-figures"><tbody>{shown}</tbody></table>'


def _link(target: str) -> str:
    if target.startswith(("https://", "http://")):
        return f'<a href="{esc(target)}" rel="noopener noreferrer">{esc(target)}</a>'
    return f"<code>{breakable(target)}</code>"


def jobs_table(jobs: Sequence[Job], everybody: Sequence[Job] = ()) -> str:
    """The latest jobs, newest first, each with a link to its page.

    `everybody`: all jobs, among which the queued ones have their place.
    """
    queued = sorted(job.created for job in everybody if job.state is State.QUEUED)
    rows = "".join(
        f'<tr><td>{pill(job.state)}</td><td><a href="job?id={esc(job.id)}">{short_name(job.model)} → '
        f"{short_name(job.to)}</a></td><td>{esc(', '.join(job.tricks))}</td>"
        f"<td>{esc(_standing(job, queued))}</td>"
        f"<td>{when(job.created)}</td></tr>"
        for job in jobs
    )
    if not rows:
        return hint("No jobs yet. Convert a model and it will be listed here.")
    return (
        '<div class="ts-scroll ts-whole-length" tabindex="0" role="region" aria-label="Jobs">'
        '<table class="ts-table ts-jobs">'
        '<thead><tr><th scope="col">State</th>'
        '<th scope="col">Job</th><th scope="col">Tricks</th><th scope="col">Stage, verdict or reason</th>'
        f'<th scope="col">Submitted</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _standing(job: Job, queued: Sequence[float]) -> str:
    if job.state is State.QUEUED and job.created in queued:
        return f"number {list(queued).index(job.created) + 1} in line"
    if job.state is State.RUNNING and job.stage:
        return str(job.stage)
    return str((job.state is State.REJECTED and job.reason) or job.verdict or job.reason or "")


def standing(ahead: int, seconds: float | None) -> str:
    """Where a job stands in line, in words."""
    line = "next in line" if ahead == 0 else f"{count(ahead, 'job')} before this one"
    return esc(f"{line}; about {duration(seconds)} to wait" if seconds else line)
