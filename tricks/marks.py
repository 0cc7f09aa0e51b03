"""Marks in `config.json` for runtimes that know norms without gain. The names are not settled; this table is.

A mark is written where it is true: every norm that the runtime would then run without a gain has none left.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """`field: true`, where the gains of all norms that `norms` matches (by module path) are folded."""

    field: str
    norms: str
    source: str


MARKS = (
    # Llama's layer norms and its final norm are built without weight.
    Mark("flashnorm_folded", r"", "https://github.com/vllm-project/vllm/pull/41431"),
    Mark("flashnorm_folded", r"", "https://github.com/huggingface/transformers/pull/45742"),
    # The decoder layers' norms alone; the final norm and QK-norms keep theirs.
    Mark(
        "flash_norm",
        r"\.(?:input|post_attention)_layernorm$",
        "https://github.com/GeeeekExplorer/nano-vllm/pull/250",
    ),
)


def marks(folded: Collection[str], left: Collection[str]) -> dict[str, bool]:
    """The fields that are true of a model, from the module paths of its norms without and with a gain."""
    fields: dict[str, bool] = {}
    for mark in MARKS:
        pattern = re.compile(mark.norms)
        if any(map(pattern.search, folded)) and not any(map(pattern.search, left)):
            fields[mark.field] = True
    return fields
