"""What each trick is, in a sentence for somebody who has read none of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tricks import TRICKS

ABOUT: dict[str, str] = {
    "flashnorm": "Moves each norm's gain into the layers behind it: a runtime may skip the multiplication.",
    "precompute": "Tabulates the first layer per token, so that it is looked up instead of computed.",
    "slim": "Keeps only one of the two halves of the attention cache, and rebuilds the other from it.",
    "matshrink": "Turns blocks of attention matrices into identities, neither stored nor multiplied.",
    "skipless": "Merges matrices of models that have no skip connections.",
    "approximate": "Replaces old cache entries by a summary of fixed size. Not exact: it needs a budget.",
}


@dataclass(frozen=True)
class Words:
    """An option in words: its field's label, a sentence about it, and what each of its choices means."""

    label: str
    about: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)


_NEW_CODE = "All but the first bring a modelling file along"

OPTIONS: dict[str, dict[str, Words]] = {
    "flashnorm": {
        "form": Words(
            "what becomes of the norms",
            _NEW_CODE,
            {
                "compat": "their gains become 1; loads everywhere, no faster by itself",
                "strict": "their gains are gone from the files",
                "center": "LayerNorm becomes RMSNorm",
                "cancel": "those that others follow are gone",
                "defer": "norm and product side by side",
            },
        )
    },
    "slim": {
        "mode": Words(
            "what is kept in the cache",
            choices={
                "auto": "what costs least",
                "k": "keys",
                "v": "values",
                "x": "the layer's input",
                "e": "the encoder's output",
            },
        ),
        "residual": Words("width of the correction that is cached beside it"),
        "target": Words(
            "how close the result stays",
            "Where the width is auto: what the cache may cost, as a share of the source's own rounding noise",
        ),
        "cache": Words(
            "numbers in the cache",
            choices={"own": "as the model writes them", "int8": "in 8 bits, about half of that"},
        ),
    },
    "matshrink": {
        "form": Words(
            "what is written",
            choices={
                "stored": "smaller files, and a modelling file",
                "compat": "files that load everywhere; nothing is saved yet",
            },
        ),
        "pivot": Words(
            "which block becomes the identity", choices={"qr": "the best conditioned", "first": "the first"}
        ),
    },
    "skipless": {
        "absorb": Words("which matrix is merged away", choices={"q": "queries", "k": "keys", "v": "values"})
    },
    "approximate": {
        "window": Words("latest tokens that stay exact"),
        "sinks": Words("first tokens that stay exact"),
        "poly": Words(
            "what stands for the tokens between",
            choices={
                "taylor": "a Taylor polynomial",
                "chebyshev": "a Chebyshev polynomial",
                "minimax": "a minimax polynomial",
                "none": "nothing: they are forgotten",
            },
        ),
        "degree": Words("degree of the polynomial", "A higher one is closer, and takes more memory"),
        "parts": Words("parts of a head", "More of them take less memory"),
        "low": Words("where the polynomial's fit begins"),
        "high": Words("where the polynomial's fit ends"),
        "kl": Words(
            "budget: how far the next-token odds may move",
            "KL divergence in nats per token; 0.05 is a usual one",
        ),
        "perplexity": Words(
            "budget: how much perplexity may grow", "A share of the source's; 0.02 is two percent"
        ),
    },
}
"""What each option means to somebody who has read none of the papers."""

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


def about_option(trick: str, option: str) -> Words:
    """What an option means; its bare name for one that this page has not heard of."""
    return OPTIONS.get(trick, {}).get(option, Words(option))


def about_choice(trick: str, option: str, choice: str) -> str:
    """What a choice of an option means, with the word that recipes have for it."""
    meaning = about_option(trick, option).choices.get(choice)
    return f"{meaning} ({choice})" if meaning else choice
