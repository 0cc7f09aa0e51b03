"""A sample of `make coverage`, and the table that it wrote. Whisper is in `tests/tricks/test_families.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.coverage_model import FAMILIES, types
from benchmarks.coverage_row import NOTHING, REFUSED, VERIFIED, measure

ROOT = Path(__file__).parents[2]
SAMPLE = {
    "causal LM": {
        "bamba": 9,
        "bloom": 4,
        "deepseek_v2": 17,
        "ernie4_5_moe": 8,
        "falcon_h1": 9,
        "gemma4": 8,
        "gpt_oss": 9,
        "longcat_flash": 25,
        "phimoe": 5,
        "qwen3_5_moe": 9,
    },
    "encoder-decoder": {"t5": 10},
    "masked LM": {"modernbert": 4},
    "vision-language": {"llava": 9},
}
"""Family -> type -> how many norms of its small model can be folded at least."""


@pytest.mark.parametrize(
    ("family", "model_type"), [(family, name) for family, names in SAMPLE.items() for name in names]
)
def test_a_sample_of_the_table(family: str, model_type: str) -> None:
    row = measure(family, model_type, types(family)[model_type])
    assert row.status == VERIFIED, row
    assert row.folded >= SAMPLE[family][model_type]


def test_the_committed_table_has_nothing_wrong_and_enough_verified() -> None:
    parts = json.loads((ROOT / "benchmarks/results/coverage.json").read_text())["parts"]
    assert parts.keys() == FAMILIES.keys()
    rows = [row for part in parts.values() for row in part["rows"]]
    assert {row["status"] for row in rows} <= {VERIFIED, NOTHING, REFUSED}
    causal = [row for row in rows if row["family"] == "causal LM"]
    assert sum(row["status"] == VERIFIED for row in causal) >= 150
    assert all(row["error"] <= 1e-9 for row in rows if row["status"] == VERIFIED)
    assert all(row["reason"] for row in rows if row["status"] == REFUSED)
    page = (ROOT / "docs/coverage.md").read_text()
    assert all(f"| {row['type']} | {row['status']} |" in page for row in rows)
