"""Source and converted model side by side, token by token, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from service.comparing import Answer, Comparison, Side, Token
from service.jobs import Job
from ui.pages import parts
from ui.pages.escape import esc
from ui.text import count, size

TIE = 0.25
"""Logits: a lead this small is a near tie, which rounding alone may break either way."""


def view(job: Job, asked: Comparison, answer: Answer) -> str:
    """What both wrote so far, where they part, and their figures."""
    if answer.state == "failed":
        return parts.problem(answer.reason or "it failed")
    where = f"On this service's worker: {answer.where}, one run." if answer.where else ""
    return (
        f'<section class="ts-compare"><p class="ts-lead" role="status">{esc(_verdict(answer, asked.new))}</p>'
        f'<div class="ts-sides">{_side("Source", job.model, answer.source, answer.converted.tokens)}'
        f"{_side('Converted', job.to, answer.converted, answer.source.tokens)}</div>"
        f'<p class="ts-quiet">Prompt: <q>{esc(asked.prompt)}</q></p>'
        f'<p class="ts-quiet">{esc(where)} This is one look; the evidence on '
        f'<a href="job?id={esc(job.id)}">its job page</a> rests on thousands of tokens.</p></section>'
    )


def _verdict(answer: Answer, new: int) -> str:
    """Where the two are, in words."""
    if answer.state == "waiting":
        return "Waiting for a worker to be free …"
    at = answer.parted
    if at is not None:
        lead = answer.source.tokens[at].lead if at < len(answer.source.tokens) else None
        said = f"The texts part at token {at + 1}."
        if lead is None:
            return f"{said} One of the two ends there."
        tie = ": nearly a tie, which rounding may break either way" if lead < TIE else ""
        return f"{said} The source's choice led the next best by {lead:.3g} logits there{tie}."
    if answer.state != "done":
        wrote = len(answer.source.tokens) + len(answer.converted.tokens)
        return f"Writing … {wrote} of up to {2 * new} tokens" if wrote else "Loading the models …"
    return f"Both wrote the same {count(len(answer.source.tokens), 'token')}."


def _side(title: str, name: str, side: Side, other: Sequence[Token]) -> str:
    tokens = "".join(_token(number, token, other) for number, token in enumerate(side.tokens))
    speed = side.tokens_per_second
    tiles = (
        parts.tile("tokens per second", f"{speed:,.1f}" if speed else "…")
        + parts.tile("cache at the end", size(side.cache_bytes) if side.cache_bytes else "…")
        + parts.tile("tokens written", f"{len(side.tokens):,}")
    )
    head = f'<h3>{esc(title)} <span class="ts-quiet">{parts.short_name(name)}</span></h3>'
    return (
        f'<article class="ts-side">{head}'
        f'<div class="ts-tokens" role="region" tabindex="0" aria-label="What the {esc(title.lower())} wrote">'
        f"{tokens}</div>"
        f'<div class="ts-tiles">{tiles}</div></article>'
    )


def _token(number: int, token: Token, other: Sequence[Token]) -> str:
    tag = "mark" if number < len(other) and other[number].id != token.id else "span"
    return f'<{tag} title="token {number + 1}: led by {token.lead:.3g} logits">{esc(token.text)}</{tag}>'
