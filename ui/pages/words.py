"""What each trick is, in a sentence for somebody who has read none of the papers."""

from __future__ import annotations

from tricks import TRICKS

ABOUT: dict[str, str] = {
    "flashnorm": "Moves each norm's gain into the layers behind it: a runtime may skip the multiplication.",
    "precompute": "Tabulates the first layer per token, so that it is looked up instead of computed.",
    "slim": "Keeps only one of the two halves of the attention cache, and rebuilds the other from it.",
    "matshrink": "Turns blocks of attention matrices into identities, neither stored nor multiplied.",
    "skipless": "Merges matrices of models that have no skip connections.",
    "approximate": "Replaces old cache entries by a summary of fixed size. Not exact: it needs a budget.",
}


ORDER = ("flashnorm", "slim", "precompute", "matshrink", "approximate", "skipless")
"""The order in which a page offers them: what fits most models first."""


def rank(trick: str) -> int:
    """A trick's place in `ORDER`; those that it does not name come last."""
    return ORDER.index(trick) if trick in ORDER else len(ORDER)


def in_order() -> list[str]:
    """Every trick, as a page offers them."""
    return sorted(TRICKS, key=rank)


def about(trick: str) -> str:
    """One sentence, or nothing for a trick that this page has not heard of."""
    return ABOUT.get(trick, "")
