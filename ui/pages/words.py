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

OPTIONS: dict[str, dict[str, str]] = {
    "flashnorm": {
        "form": "compat: loads everywhere, no faster by itself. strict: the gains are gone from the files."
        " center: LayerNorm becomes RMSNorm. cancel: norms that others follow are gone. defer: norm and"
        " product side by side. All but compat bring a modelling file along"
    },
    "slim": {
        "mode": "What is cached: k keys, v values, x the layer's input, e the encoder's output",
        "residual": "How wide a correction is cached beside it",
        "target": "With auto: what the cache may cost, as a share of the source's own rounding noise",
        "cache": "own: in the model's own number format. int8: in 8 bits, about half of that",
    },
    "matshrink": {
        "form": "stored: smaller files, and a modelling file. compat: loads everywhere, saves nothing yet",
        "pivot": "qr: the best conditioned block becomes the identity. first: the first one does",
    },
    "skipless": {"absorb": "The matrix that is merged away: q queries, k keys, v values"},
    "approximate": {
        "window": "So many of the latest tokens stay exact",
        "sinks": "So many of the first tokens stay exact",
        "poly": "The polynomial that stands for older tokens; none forgets them",
        "degree": "The polynomial's degree: a higher one is closer, and takes more memory",
        "parts": "Into so many parts a head is split: more of them take less memory",
        "low": "From where on the polynomial is fitted",
        "high": "Up to where the polynomial is fitted",
        "kl": "The budget: how far the next-token odds may move, in nats per token; 0.05 is a usual one",
        "perplexity": "The budget, said otherwise: how much perplexity may grow; 0.02 is two percent",
    },
}
"""What each option means, in a sentence or two."""

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


def about_option(trick: str, option: str) -> str:
    """What an option means, or nothing for one that this page has not heard of."""
    return OPTIONS.get(trick, {}).get(option, "")
