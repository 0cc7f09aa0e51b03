"""The documents of the tasks in this folder: made by rule from the package's held-out text, always the same.

Each function is named in a YAML file as `custom_dataset` and gives one split. All choices of a document have
about the same length, and the right one stands anywhere, so that chance is one in four.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

TEXT = Path(__file__).parent.parent / "heldout.txt"
DOCUMENTS = 200
CHOICES = 4
Document = dict[str, Any]


def order(**_: Any) -> DatasetDict:
    """Which eight words go on after forty of the text; the others are the same words in another order."""
    words = _words()

    def make(rng: random.Random) -> Document:
        begin = rng.randrange(len(words) - 48)
        right = words[begin + 40 : begin + 48]
        spans = [" ".join(right), *(" ".join(rng.sample(right, 8)) for _ in range(CHOICES - 1))]
        return _document(rng, " ".join(words[begin : begin + 40]), spans)

    return _split(make, seed=1)


def copy(**_: Any) -> DatasetDict:
    """One or two words said again and again: which comes next."""
    plain = _plain()

    def make(rng: random.Random) -> Document:
        drawn = rng.sample(plain, 5)
        said = drawn[: rng.choice((1, 2))]
        row = said * (12 // len(said))
        return _document(rng, ", ".join(row) + ",", [row[0], *drawn[2:]])

    return _split(make, seed=2)


def retrieval(times: int = 4, gap: int = 20, **_: Any) -> DatasetDict:
    """A keyword that was given `times` times, with `gap` words of the text behind each."""
    words, plain = _words(), _plain()

    def make(rng: random.Random) -> Document:
        spans = [f'"{word}"' for word in rng.sample(plain, CHOICES)]
        parts = []
        for _ in range(times):
            begin = rng.randrange(len(words) - gap)
            parts += [f"The keyword is {spans[0]}.", " ".join(words[begin : begin + gap])]
        return _document(rng, "\n\n".join([*parts, "The keyword is"]), spans)

    return _split(make, seed=3)


def arithmetic(**_: Any) -> DatasetDict:
    """Counting on by one: which number comes next."""

    def make(rng: random.Random) -> Document:
        begin = rng.randrange(20)
        row = list(range(begin, begin + rng.randrange(6, 11)))
        wrong = rng.sample([*row[:-2], *(row[-1] + far for far in (3, 4, 7))], CHOICES - 1)
        return _document(rng, ", ".join(map(str, row[:-1])) + ",", [str(n) for n in (row[-1], *wrong)])

    return _split(make, seed=4)


def text(**_: Any) -> DatasetDict:
    """The held-out text in stretches of some two thousand characters, broken between paragraphs."""
    return DatasetDict({"test": Dataset.from_list([{"text": part} for part in _stretches(2000)])})


def _words() -> list[str]:
    return TEXT.read_text(encoding="utf-8").split()


def _plain() -> list[str]:
    """The 150 most frequent words of the text that consist of four to eight small letters."""
    counted = Counter(word for word in _words() if re.fullmatch(r"[a-z]{4,8}", word))
    return [word for word, _ in counted.most_common(150)]


def _stretches(size: int) -> Iterator[str]:
    part = ""
    for paragraph in TEXT.read_text(encoding="utf-8").split("\n\n"):
        part = f"{part}\n\n{paragraph}" if part else paragraph
        if len(part) >= size:
            yield part
            part = ""
    if part.strip():
        yield part


def _document(rng: random.Random, question: str, spans: Sequence[str]) -> Document:
    """`spans` begins with the right one."""
    order = list(range(len(spans)))
    rng.shuffle(order)
    return {"text": question, "choices": [spans[i] for i in order], "label": order.index(0)}


def _split(make: Any, seed: int) -> DatasetDict:
    """Up to 200 documents, no question twice: what repeats itself adds no evidence."""
    rng = random.Random(seed)
    documents: dict[str, Document] = {}
    for _ in range(20 * DOCUMENTS):
        document = make(rng)
        if len(set(document["choices"])) == CHOICES:
            documents.setdefault(document["text"], document)
        if len(documents) == DOCUMENTS:
            break
    return DatasetDict({"test": Dataset.from_list(list(documents.values()))})
