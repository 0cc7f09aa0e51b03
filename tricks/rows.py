"""Rows of module names, written short: one row for all layers (the shipped code reads them)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any


def compact(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in the number of their layer only, as one: `a.0.b` and `a.1.b` become `a.[0-1].b`.

    The layer's number is the first in the text `at`; it is replaced in every text of the row.
    """
    groups: dict[str, list[int]] = {}
    plain: list[dict[str, Any]] = []
    for row in rows:
        number = re.search(r"(?<=\.)\d+(?=\.)", row["at"])
        if number is None:
            plain.append(row)
            continue
        template = {
            key: re.sub(rf"(?<=\.){number[0]}(?=\.)", "[]", value, count=1)
            if isinstance(value, str)
            else value
            for key, value in row.items()
        }
        groups.setdefault(json.dumps(template), []).append(int(number[0]))
    short = [
        {
            key: value.replace("[]", f"[{_ranges(numbers)}]", 1) if isinstance(value, str) else value
            for key, value in json.loads(template).items()
        }
        for template, numbers in groups.items()
    ]
    return short + plain


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
