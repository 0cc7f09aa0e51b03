"""Figures and names as people read them; shared by the terminal and the pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tricks import Place, Plan

if TYPE_CHECKING:  # evals brings torch
    from evals import Evidence

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|\b)")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def one_line(text: str) -> str:
    """Text from elsewhere as one line that cannot move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def size(count: float) -> str:
    """Bytes in decimal units: 1234567 -> "1.2 MB"."""
    step = 0
    while abs(count) >= 999.5 and step < len(_UNITS) - 1:
        count /= 1000
        step += 1
    return f"{count:.0f} {_UNITS[step]}" if step == 0 or abs(count) >= 99.5 else f"{count:.1f} {_UNITS[step]}"


def amount(unit: str, count: float) -> str:
    """A count with its unit: bytes are scaled, everything else has thousands separated."""
    return size(count) if unit == "bytes" else f"{count:,.0f} {unit}"


def share(unit: str, done: float, total: float) -> str:
    """How much of how much: "1.2 MB of 3.4 MB", "10 of 40 tokens"; without a total, what is done."""
    if not total:
        return amount(unit, done)
    return f"{size(done)} of {size(total)}" if unit == "bytes" else f"{done:,.0f} of {total:,.0f} {unit}"


def rate(unit: str, per_second: float) -> str:
    """A speed with its unit; slow ones keep one digit behind the point."""
    if unit == "bytes":
        return f"{size(per_second)}/s"
    return f"{per_second:,.0f} {unit}/s" if per_second >= 10 else f"{per_second:.1f} {unit}/s"


def duration(seconds: float) -> str:
    """Seconds as "0.4 s", "12 s", "3 min 5 s", "15 min" or "2 h 10 min"."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    long, short = ((whole // 60, "min"), (whole % 60, "s"))
    if whole >= 3600:
        long, short = ((whole // 3600, "h"), (whole % 3600 // 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in (long, short) if number)


def ago(seconds: float) -> str:
    """How long ago, coarsely: what a list needs, and the same in every time zone."""
    if seconds < 60:
        return "just now"
    for length, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    raise AssertionError("unreachable")


def count(number: int, noun: str) -> str:
    """1 place, 2 places."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def layer_pattern(where: str) -> str:
    """A module's path with `*` for each layer number, as `tricks.Part` writes it."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", where)


@dataclass(frozen=True)
class PlaceGroup:
    """Places that differ in nothing but a layer number, told as one: `where` has [0-31] for it."""

    trick: str
    where: str
    fits: bool
    detail: str
    size: int


def group_places(places: Iterable[Place]) -> list[PlaceGroup]:
    """Join the places of equal layers, in the order in which each kind first appears."""
    groups: dict[tuple[str, bool, str, str], list[Place]] = {}
    for place in places:
        key = (place.trick, place.fits, _NUMBER.sub("*", place.where), _NUMBER.sub("*", place.detail))
        groups.setdefault(key, []).append(place)
    return [_group(members) for members in groups.values()]


def _group(members: list[Place]) -> PlaceGroup:
    first = members[0]
    if len(members) == 1:
        return PlaceGroup(first.trick, first.where, first.fits, first.detail, 1)
    layers = [int(found.group()) for m in members if (found := _NUMBER.search(m.where))]
    span = f"[{_ranges(layers)}]"
    where = _NUMBER.sub(span, first.where, count=1)
    return PlaceGroup(first.trick, where, first.fits, _NUMBER.sub(span, first.detail), len(members))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def savings_rows(plan: Plan) -> list[tuple[str, str]]:
    """A plan's savings as (name, value), e.g. ("weight bytes", "1.2 MB")."""
    rows = []
    for key, value in plan.savings.items():
        name = key.replace("_", " ")
        rows.append(
            (
                name,
                size(value)
                if "bytes" in key
                else f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}",
            )
        )
    return rows


def gains(plan: Plan) -> list[tuple[str, str]]:
    """What a plan saves or costs, as (value, what it is of); nothing of what stays as it is."""
    rows, said = [], plan.savings
    saved = said.get("weight_bytes_saved", 0)
    if saved:
        rows.append((size(abs(saved)), f"{'less' if saved > 0 else 'more'} to store"))
    for key, before in said.items():
        after = said.get(key.replace("_before", "_after"))
        if "_before" not in key or after is None or after == before:
            continue
        name = key.replace("_before", "").replace("_", " ").replace("cache bytes", "cache")
        scaled = size if "bytes" in key else "{:,}".format
        if not name.endswith(("16", "1024")):  # a card has room for the smallest and a large batch
            rows.append((f"{scaled(before)} → {scaled(after)}", name))
    return rows


def proof_line(plan: Plan) -> str:
    """What the plan's own proof showed, in words."""
    if not plan.fits:
        return "nothing to prove"
    if plan.proof is None:
        return "not proven yet: the plan's own proof did not run"
    return (
        f"proven in float64 on a small random model of this class: outputs agree to {plan.proof:.1e} relative"
    )


_MEANING = {
    "equivalent": "Every measured difference is within the limits that the source's rounding noise sets.",
    "within budget": "Every measured difference is within the stated budget.",
}


def reasons(evidence: Evidence) -> list[str]:
    """Why the verdict is what it is, in words; a good one, which needs no reason, says what it means."""
    meaning = _MEANING.get(str(evidence.verdict))
    return list(evidence.reasons) or ([meaning] if meaning else [])


def evidence_text(evidence: Evidence) -> str:
    """Verdict, reasons and figures, for a terminal."""
    lines = [f"Verdict: {evidence.verdict}"]
    lines += [f"  {one_line(reason)}" for reason in reasons(evidence)]
    rows = evidence.headline()
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(
        [*lines, "", *(f"  {one_line(name):<{width}}  {one_line(value)}" for name, value in rows)]
    )
