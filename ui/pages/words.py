"""What each trick is, in a sentence for somebody who has read none of the papers."""

from __future__ import annotations

ABOUT: dict[str, str] = {
    "flashnorm": "Moves each norm's gain into the layers behind it: a runtime may skip the multiplication.",
    "precompute": "Tabulates the first layer per token, so that it is looked up instead of computed.",
    "slim": "Keeps only one of the two halves of the attention cache, and rebuilds the other from it.",
    "matshrink": "Merges neighbouring matrices of the attention, so that fewer weights are stored and read.",
    "skipless": "Merges matrices of models that have no skip connections.",
    "approximate": "Replaces old cache entries by a summary of fixed size. Not exact: it needs a budget.",
}


def about(trick: str) -> str:
    """One sentence, or nothing for a trick that this page has not heard of."""
    return ABOUT.get(trick, "")
