"""`make bench-gpu` where there is no card, and the page that is written from its last run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import clock, report, run


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_minutes_that_are_none_are_refused(minutes: str) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main(["--minutes", minutes])
    assert refused.value.code == 2


def test_a_budget_runs_out() -> None:
    budget = clock.Budget()
    assert budget.left() == float("inf")
    budget.start(0.5)
    assert 0 < budget.left() <= 30


def test_the_page_is_the_last_runs() -> None:
    found = json.loads(run.RESULTS.read_text())
    page = report.page(found)
    assert found["card"] in page
    assert found["command"] in page
    assert page == (Path(report.DOCS) / "gpu.md").read_text()
