"""What each trick buys, and what it does not: the card's words, which hold for every model.

Figures of this one model stand beside them, counted by the plan. No line here claims a speed: a conversion
measures none.
"""

from __future__ import annotations

from collections.abc import Iterable

from tricks import Trick

_UNMEASURED = "No speed was measured on this model."

# Trick, option (where its value matters), and what is true then; of the lines that fit, the last count.
_GAINS: tuple[tuple[str, tuple[str, str] | None, tuple[str, ...]], ...] = (
    (
        "skipless",
        None,
        (
            "Two d x d matrices of each block are gone (one in parallel blocks): that many fewer bytes are"
            " read for a token.",
            f"The bytes are counted. {_UNMEASURED}",
        ),
    ),
    (
        "precompute",
        None,
        (
            "What the first layer computes of each token alone is looked up by token id: at batch 1 a"
            " decoding step reads one row of the table where it read those weights. The figures below are"
            " counted, not timed.",
            "Only projections of one layer are saved, not a layer: a few per cent of a model's weights at"
            " most. The table usually makes the files larger, and the model takes token ids alone, no"
            " `inputs_embeds`.",
        ),
    ),
    (
        "slim",
        None,
        (
            "In the layers named above the cache holds keys and a thin residual where it held keys and"
            " values. The bytes per token are counted with the residual.",
            "It saves memory first: in plain PyTorch a decoding step takes longer than with the standard"
            " cache, and at short contexts also with the CUDA kernel that is shipped for Hopper cards."
            f" {_UNMEASURED}",
        ),
    ),
    (
        "matshrink",
        None,
        (
            "The identity blocks are not stored, and for few tokens at a time (decoding) not multiplied: that"
            " many weights less in each block.",
            f"It is a small share of the model. {_UNMEASURED}",
        ),
    ),
    (
        "matshrink",
        ("form", "compat"),
        (
            "Stock code loads this form. It stores the identity blocks as they are: **no byte and no"
            " operation is saved** by it.",
            "It is there for runtimes that know how to leave the blocks out.",
        ),
    ),
    (
        "approximate",
        None,
        (
            "Its memory for past tokens does not grow with them: a window, the first tokens, and sums.",
            "It is **not** the same model: what it loses is measured above and held to the budget in the"
            " recipe. A plain sliding window with the same memory can be the better choice; compare with"
            " `poly=none`.",
        ),
    ),
    (
        "approximate",
        ("poly", "none"),
        (
            "Its memory for past tokens does not grow with them: a window and the first tokens.",
            "It is **not** the same model: older tokens are forgotten. What it loses is measured above and"
            " held to the budget in the recipe.",
        ),
    ),
    (
        "flashnorm",
        None,
        (
            "Every folded gain is gone from the norm's work: a runtime that skips the multiplication by a"
            " gain of ones (or runs the norm beside the matrix product) may use that.",
            "In stock transformers it is **not faster** by itself: there the norms still multiply, now by"
            " ones.",
        ),
    ),
    (
        "flashnorm",
        ("form", "defer"),
        (
            "Norm and matrix product no longer wait for one another: the product runs on what the norm would"
            " have scaled, and the scale, one number per token, is applied to its result.",
            "On a CUDA card the shipped code does both in one kernel for up to 16 tokens; elsewhere it does"
            f" one after the other. {_UNMEASURED}",
        ),
    ),
    (
        "flashnorm",
        ("form", "cancel"),
        (
            "The cancelled norms scale nothing any more: of each remains one number per token, which keeps"
            " the result exact whatever ε is.",
            _UNMEASURED,
        ),
    ),
    (
        "flashnorm",
        ("form", "center"),
        (
            "The shipped norms take no mean off: one reduction less per norm, and a runtime that knows"
            " RMSNorm alone can run this model.",
            _UNMEASURED,
        ),
    ),
    (
        "flashnorm",
        ("form", "strict"),
        (
            "The folded gains are gone from the files, and the norms of the shipped code multiply by"
            " nothing: a few kilobytes and one small operation per norm.",
            f"{_UNMEASURED} A runtime that does not know norms without gain fills in ones, or refuses.",
        ),
    ),
)


def gains(tricks: Iterable[Trick]) -> list[str]:
    """The lines of the card for `tricks`, all of which found a place."""
    lines: list[str] = []
    for trick in tricks:
        said = [
            told
            for name, option, told in _GAINS
            if name == trick.name and (option is None or trick.option(option[0]) == option[1])
        ]
        lines += said[-1] if said else ()
    return lines or ["Only what the table below counts; nothing else was measured."]
