"""A model's wiring as a picture: a block diagram in SVG, with a badge wherever a trick does something.

The layout follows the wiring alone: a norm stands above the layers that read it, modules of one parent stand
in one frame, and what repeats is drawn once with its count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tricks import Part, Place, Plan
from ui.pages.escape import esc
from ui.text import layer_pattern

_WIDTH = 440
_BOX_HEIGHT, _GAP, _MARGIN = 34, 12, 16
_PER_ROW = 3
COLOURS = ("#0f766e", "#b45309", "#6d28d9", "#be123c", "#1d4ed8", "#4d7c0f")
"""Of the tricks, in the order of `TRICKS`; each is 4.5 : 1 on white, and white on it."""


@dataclass
class _Group:
    """Modules of one parent: rows of boxes, top to bottom."""

    parent: str
    rows: list[list[Part]] = field(default_factory=list)


def picture(parts: Sequence[Part], plans: Iterable[tuple[int, Plan]], name: str) -> str:
    """The diagram; `plans` are (number of the trick, its plan)."""
    marks = _marks(plans)
    groups = _groups(parts)
    drawn: list[str] = []
    y = _MARGIN
    for number, group in enumerate(groups):
        if number:
            drawn.append(_arrow(y - _GAP, y))
        piece, y = _draw(group, marks, y)
        drawn.append(piece)
        y += _GAP
    height = y - _GAP + _MARGIN
    told = esc(f"Wiring of {name}: " + "; ".join(_words(group, marks) for group in groups))
    return (
        f'<svg class="ts-picture" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{told}">'
        f"{''.join(drawn)}</svg>"
    )


def _marks(plans: Iterable[tuple[int, Plan]]) -> dict[str, list[tuple[int, str, int]]]:
    """Where -> (number of the trick, its name, at how many places)."""
    found: dict[str, dict[tuple[int, str], int]] = {}
    for number, plan in plans:
        for place in plan.places:
            if place.fits:
                at = found.setdefault(layer_pattern(place.where), {})
                at[number, place.trick] = at.get((number, place.trick), 0) + 1
    return {where: [(n, name, count) for (n, name), count in at.items()] for where, at in found.items()}


def _groups(parts: Sequence[Part]) -> list[_Group]:
    """Parts by parent; a norm moves to the group that reads it, above its first reader."""
    norms = {part.where: part for part in parts if part.kind == "norm"}
    read = {part.reads for part in parts if part.reads}
    groups: dict[str, _Group] = {}
    for part in parts:
        if part.kind == "norm" and part.where in read:
            continue
        group = groups.setdefault(_parent(part.where), _Group(_parent(part.where)))
        row = next((r for r in group.rows if _joins(part, r)), None)
        if row is None:
            row = []
            norm = norms.pop(part.reads, None) if part.reads else None
            if norm is not None:
                group.rows.append([norm])
            group.rows.append(row)
        row.append(part)
    return sorted(groups.values(), key=_rank)


def _joins(part: Part, row: list[Part]) -> bool:
    if not row:
        return False
    return (row[0].reads, row[0].kind == "norm") == (part.reads, part.kind == "norm")


def _rank(group: _Group) -> int:
    """Embeddings first, heads and final norms last; the rest in the order of the model's class."""
    kinds = {part.kind for row in group.rows for part in row}
    if "*" in group.parent:
        return 1
    return 0 if "embedding" in kinds else 2


def _parent(where: str) -> str:
    return where.rpartition(".")[0]


def _draw(group: _Group, marks: dict[str, list[tuple[int, str, int]]], y: int) -> tuple[str, int]:
    """The group with its frame, from `y` on; returns the lower end too."""
    pieces: list[str] = []
    top = y
    y += 24
    count = max(part.count for row in group.rows for part in row)
    for number, row in enumerate(group.rows):
        if number:
            pieces.append(_arrow(y - _GAP, y))
        for begin in range(0, len(row), _PER_ROW):
            boxes = row[begin : begin + _PER_ROW]
            width = (_WIDTH - 4 * _MARGIN - _GAP * (len(boxes) - 1)) / len(boxes)
            if row[0].kind == "norm" or len(boxes) == 1:
                width = min(width, 200)
            left = (_WIDTH - width * len(boxes) - _GAP * (len(boxes) - 1)) / 2
            for at, part in enumerate(boxes):
                pieces.append(_box(part, marks.get(part.where, []), left + at * (width + _GAP), y, width))
            y += _BOX_HEIGHT + _GAP
    times = f" × {count}" if count > 1 else ""
    name = f"{esc(_short(group.parent))}{times}"
    title = f'<text class="ts-p-title" x="{_MARGIN + 12}" y="{top + 17}">{name}</text>'
    badges = _badges(marks.get(group.parent, []), _WIDTH - _MARGIN - 12, top + 12)
    frame = (
        f'<rect class="ts-p-frame" x="{_MARGIN}" y="{top}" width="{_WIDTH - 2 * _MARGIN}" '
        f'height="{y - top}" rx="12"/>'
    )
    return frame + title + "".join(pieces) + badges, y


def _box(part: Part, found: list[tuple[int, str, int]], x: float, y: float, width: float) -> str:
    name = part.where.rpartition(".")[2]
    most = max(6, int(width / 7.6))
    shown = name if len(name) <= most else name[: most - 1] + "…"
    kind = "norm" if part.kind == "norm" else "touched" if found else "plain"
    radius = 17 if part.kind == "norm" else 6
    said = " × ".join(map(str, part.shape))
    return (
        f"<g><title>{esc(f'{part.where} [{said}]')}</title>"
        f'<rect class="ts-p-{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" '
        f'height="{_BOX_HEIGHT}" rx="{radius}"/>'
        f'<text class="ts-p-name" x="{x + width / 2:.1f}" y="{y + 21.5}">{esc(shown)}</text>'
        f"{_badges(found, x + width - 2, y + 1)}</g>"
    )


def _badges(found: list[tuple[int, str, int]], right: float, y: float) -> str:
    """A disc per trick, in its colour and with its first letter, so that colour alone tells nothing."""
    return "".join(
        f"<g><title>{esc(f'{name}: {count} of these')}</title>"
        f'<circle cx="{right - 17 * at:.1f}" cy="{y}" r="8.5" fill="{COLOURS[number % len(COLOURS)]}"/>'
        f'<text class="ts-p-badge" x="{right - 17 * at:.1f}" y="{y + 3.7}">{esc(name[:1].upper())}</text></g>'
        for at, (number, name, count) in enumerate(found)
    )


def _arrow(top: float, bottom: float) -> str:
    middle = _WIDTH / 2
    return f'<path class="ts-p-arrow" d="M{middle} {top}V{bottom - 1}m-3.5-4l3.5 4l3.5-4"/>'


def _short(parent: str) -> str:
    names = [name for name in parent.split(".") if name != "*"]
    return " › ".join(names[-2:]) or "model"


def _words(group: _Group, marks: dict[str, list[tuple[int, str, int]]]) -> str:
    touched = [
        f"{part.where.rpartition('.')[2]} ({', '.join(name for _, name, _ in marks[part.where])})"
        for row in group.rows
        for part in row
        if part.where in marks
    ]
    return f"{_short(group.parent)}: {', '.join(touched) or 'untouched'}"


def legend(tricks: Sequence[tuple[int, str]], places: Iterable[Place]) -> str:
    """What the badges mean, as a list."""
    counts: dict[str, int] = {}
    for place in places:
        counts[place.trick] = counts.get(place.trick, 0) + place.fits
    items = "".join(
        f'<li><i aria-hidden="true" style="background:{COLOURS[number % len(COLOURS)]}">'
        f"{esc(name[:1].upper())}</i>{esc(name)}: {counts.get(name, 0):,} places</li>"
        for number, name in tricks
        if counts.get(name)
    )
    return f'<ul class="ts-legend" aria-label="Tricks in the picture">{items}</ul>' if items else ""
