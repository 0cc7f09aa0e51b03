"""Suggestions for a search box: models of the Hub whose id holds the words, the most used first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from service.hub import ask, hub, patience

KEPT_S = 300.0
"""For how long an answer is given again without asking the Hub."""
_KEPT = 500  # answers
_LONGEST = 200  # characters


@dataclass(frozen=True)
class Found:
    """One suggestion."""

    model: str
    downloads: int
    task: str | None


_answers: OrderedDict[tuple[str, int], tuple[float, list[Found]]] = OrderedDict()
_lock = threading.Lock()


def search(words: str, limit: int = 8) -> list[Found]:
    """Models with safetensors files that match `words`; nothing for fewer than two characters.

    Raises:
        BadInput: the Hub cannot be asked now.
    """
    words = " ".join(words.split())[:_LONGEST]
    if len(words) < 2:
        return []
    key = (words.casefold(), limit)
    with _lock:
        at, found = _answers.get(key, (0.0, []))
    if time.monotonic() - at < KEPT_S and at:
        return found
    # Somebody types and waits: one try, and no standing in line.
    with patience(2.0, tries=1):
        found = ask(words, lambda: _listed(words, limit))
    with _lock:
        _answers[key] = (time.monotonic(), found)
        while len(_answers) > _KEPT:
            _answers.popitem(last=False)
    return found


def _listed(words: str, limit: int) -> list[Found]:
    # Without the visitor's token, or the operator's: suggestions are for everybody's eyes.
    listed = hub(False).list_models(
        search=words, filter="safetensors", pipeline_tag="text-generation", sort="downloads", limit=limit
    )
    return [Found(info.id, info.downloads or 0, info.pipeline_tag) for info in listed]
