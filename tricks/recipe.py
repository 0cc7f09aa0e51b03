"""Tricks as users write them: `name` or `name:option=value,option=value`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tricks.errors import BadInput
from tricks.options import Choice, Option, Real, Whole

TRICKS: dict[str, dict[str, Option]] = {
    "skipless": {"absorb": Choice(("q", "k", "v"))},
    "precompute": {},
    "flashnorm": {"form": Choice(("compat", "strict", "center", "cancel", "defer"))},
    "slim": {
        "mode": Choice(("auto", "k", "v", "x", "e")),
        "residual": Whole("auto", 0, 65536, ("auto",)),
        "target": Real("0.25", 0.001, 1000),
        "cache": Choice(("own", "int8")),
    },
    "matshrink": {"form": Choice(("stored", "compat")), "pivot": Choice(("qr", "first"))},
    "approximate": {
        "window": Whole("256", 16, 1 << 20),
        "sinks": Whole("4", 0, 1 << 16),
        "poly": Choice(("taylor", "chebyshev", "minimax", "none")),
        "degree": Whole("1", 1, 4),
        "parts": Whole("1", 1, 64),
        "low": Real("observed", -60.0, 60.0, ("observed",)),
        "high": Real("observed", -60.0, 60.0, ("observed",)),
        "kl": Real("none", 0.0, 100.0, ("none",)),
        "perplexity": Real("none", 0.0, 100.0, ("none",)),
    },
}
"""Trick name -> option name -> option, in the order in which tricks of one recipe are carried out."""


@dataclass(frozen=True)
class Trick:
    """One trick with the options that differ from their defaults, sorted by name."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return self.name + ":" + ",".join(f"{key}={value}" for key, value in self.options)

    def option(self, name: str) -> str:
        """The value of an option in its canonical writing, given or default."""
        return dict(self.options).get(name, TRICKS[self.name][name].default)


def parse_trick(text: str) -> Trick:
    """Read `name[:option=value,...]`.

    Raises:
        BadInput: unknown trick, option or value, or an option given twice.
    """
    name, colon, rest = text.strip().partition(":")
    if name not in TRICKS:
        raise BadInput(f"unknown trick {name!r}; known: {', '.join(sorted(TRICKS))}")
    known = TRICKS[name]
    if colon and not rest:
        raise BadInput(f"{text!r} ends in a colon; write {name!r} or '{name}:option=value'")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise BadInput(f"{name} has no option {key!r}; it knows: {', '.join(sorted(known))}")
        canonical = known[key].read(value) if equals else None
        if canonical is None:
            raise BadInput(f"{name}:{key} takes {known[key].describe()}; not {value!r}")
        if key in given:
            raise BadInput(f"option {key!r} of {name} is given twice; give it once")
        given[key] = canonical
    return Trick(name, tuple(sorted((k, v) for k, v in given.items() if v != known[k].default)))


def stated_budget(tricks: Iterable[Trick]) -> dict[str, float]:
    """What the lossy tricks of a recipe may differ by: `kl` in nats per token, `perplexity` relative."""
    return {
        name: float(trick.option(name))
        for trick in tricks
        for name in ("kl", "perplexity")
        if name in TRICKS[trick.name] and trick.option(name) != "none"
    }


def exact_tokens(recipe: Iterable[str]) -> int:
    """How many tokens of a text a recipe's lossy attention leaves as they are; 0 where it has none.

    Args:
        recipe: tricks as written, of whatever version.
    """
    most = 0
    for text in recipe:
        try:
            trick = parse_trick(text)
        except BadInput:
            continue
        if "window" in TRICKS[trick.name]:
            most = max(most, int(trick.option("window")) + int(trick.option("sinks")))
    return most
