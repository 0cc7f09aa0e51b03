"""How a command says its answer: text for people, or one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ui.progress import say

Say = Callable[[Any], None]


@contextmanager
def answering(as_json: bool) -> Iterator[Say]:
    """Yields how to say the answer: text for people, or the one JSON document on stdout.

    With `--json`, whatever a library prints on stdout meanwhile goes to stderr, so that scripts can parse.
    """
    if not as_json:
        yield say
        return
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    said: list[Any] = []
    try:
        yield said.append
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
    for document in said:
        say(json.dumps(document, indent=2, ensure_ascii=False))
