"""What exploring a model found, as HTML: its facts, a card for each trick, and what to know before."""

from __future__ import annotations

from collections import Counter

from service.explore import QUICK, Explored
from service.preflight import Preflight
from tricks import TRICKS, Look
from ui.pages.escape import breakable, esc
from ui.pages.parts import tile
from ui.pages.picture import COLOURS, legend, picture
from ui.pages.words import about, in_order, rank
from ui.text import count, duration, gains, group_places, size

_REASONS = 3
DEEPEST = 64
"""Layers up to which every trick is looked at unasked."""


def facts(seen: Explored) -> str:
    """The model's name, commit and figures."""
    figures, source = seen.figures, seen.source
    tiles = [
        tile("parameters", _scaled(figures.parameters)),
        tile("weights", size(figures.weight_bytes)),
        tile("licence", source.licence or "not stated"),
    ]
    if figures.layers:
        tiles.append(tile("layers", f"{figures.layers:,}"))
    if figures.cache_per_token:
        tiles.append(tile("cache per token", size(figures.cache_per_token)))
    at = f" at {source.commit[:12]}" if source.commit else ""
    return (
        f'<section class="ts-facts"><h2>{breakable(source.model)} '
        f'<span class="ts-quiet">{esc(seen.architecture)}{esc(at)}</span></h2>'
        f'<div class="ts-tiles">{"".join(tiles)}</div></section>'
    )


def wiring(seen: Explored) -> str:
    """The picture with its legend."""
    plans = [(_number(look), look.plan) for look in seen.looks if look.plan is not None]
    looks = sorted(seen.looks, key=lambda look: rank(look.trick.name))
    names = [(_number(look), look.trick.name) for look in looks]
    places = [place for _, plan in plans for place in plan.places]
    return (
        '<section class="ts-wiring"><h3>Wiring, and what each trick touches</h3>'
        f"{picture(seen.parts, plans, seen.source.model)}{legend(names, places)}</section>"
    )


def cards(seen: Explored) -> str:
    """One card for each trick: fits, or does not fit because."""
    looks = sorted(seen.looks, key=lambda look: (not look.fits, rank(look.trick.name)))
    shown = "".join(_card(_number(look), look) for look in looks)
    looked = {look.trick.name for look in seen.looks}
    deep = (seen.figures.layers or 0) > DEEPEST
    shown += "".join(_pending(name, deep and name not in QUICK) for name in in_order() if name not in looked)
    return f'<section class="ts-cards" aria-label="Tricks">{shown}</section>'


def _number(look: Look) -> int:
    """A trick's number, which gives it its colour."""
    return list(TRICKS).index(look.trick.name)


def _pending(name: str, never: bool) -> str:
    """The card of a trick that was not looked at, or not yet."""
    said = "not looked at in so deep a model: choose it and “Show plan”" if never else "looking …"
    return (
        f'<article class="ts-card" aria-busy="{str(not never).lower()}"><h3>{esc(name)}</h3>'
        f'<p class="ts-quiet">{esc(about(name))}</p><p>{esc(said)}</p></article>'
    )


def _card(number: int, look: Look) -> str:
    name, plan = look.trick.name, look.plan
    head = (
        f'<h3><i aria-hidden="true" style="background:{COLOURS[number % len(COLOURS)]}">'
        f"{esc(name[:1].upper())}</i>{esc(name)} "
        f'<span class="{"ts-yes-word" if look.fits else "ts-no-word"}">'
        f"{'✓ fits' if look.fits else '✕ does not fit'}</span></h3>"
    )
    said = f'<p class="ts-quiet">{esc(about(name))}</p>' if about(name) else ""
    if plan is None:
        return f'<article class="ts-card">{head}{said}<p>because {breakable(look.reason or "")}</p></article>'
    fitting = sum(place.fits for place in plan.places)
    body = (
        [f"<p>{fitting:,} of {esc(count(len(plan.places), 'place'))} would change.</p>"] if look.fits else []
    )
    body += [f"<p><b>{esc(value)}</b> {esc(label)}</p>" for value, label in gains(plan)]
    misfits = [group for group in group_places(plan.places) if not group.fits]
    reasons = Counter[str]()
    for group in misfits:
        reasons[group.detail] += group.size
    if reasons:
        items = "".join(
            f"<li>{breakable(reason)} ({esc(count(number, 'place'))})</li>"
            for reason, number in reasons.most_common(_REASONS)
        )
        body.append(
            f"<p>{'Not everywhere' if look.fits else 'It does not fit'}, because:</p><ul>{items}</ul>"
        )
    return f'<article class="ts-card">{head}{said}{"".join(body)}</article>'


def before(seen: Preflight) -> str:
    """What the work needs here, and what to know before it starts."""
    rows = [
        ("to download", size(seen.download)),
        ("disk", f"{size(seen.disk)} of {size(seen.disk_free)} free"),
        ("memory to compare", f"{size(seen.memory)} of {size(seen.memory_free)} free"),
    ]
    tiles = "".join(tile(name, value) for name, value in rows)
    warned = "".join(f"<li>{breakable(text)}</li>" for text in seen.warnings)
    note = f'<ul class="ts-warnings" aria-label="Know before">{warned}</ul>' if warned else ""
    return (
        '<section class="ts-before"><h3>What it takes</h3>'
        f'<div class="ts-tiles">{tiles}</div>{note}</section>'
    )


def takes(seconds: float) -> str:
    """About how long, where `seconds` is what the evidence takes on this machine.

    The conversion itself moves about 1 GB in a second (`make bench-convert`), so it does not count beside
    that; what a download takes nobody knows before.
    """
    return (
        f'<p class="ts-quiet" role="status">To measure: about {esc(duration(seconds))} on this machine, '
        "after the download.</p>"
    )


def _scaled(number: int) -> str:
    for step, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return str(number)
