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


def test_parts_that_were_not_run_say_so() -> None:
    found = json.loads(run.RESULTS.read_text())
    bare = {key: value for key, value in found.items() if key not in run.NAMES}
    assert report.page(bare).count(report.ABSENT) == 9
    one = report.page({**bare, "flashnorm": found["flashnorm"], "earlier": {"flashnorm": "make it"}})
    assert one.count(report.ABSENT) == 8
    assert "From an earlier run on the same card, `make it`." in one


def test_other_parts_of_an_earlier_run_stay_with_their_command() -> None:
    before = {
        "card": "A",
        "command": "one",
        "decode": [1],
        "other": [2],
        "seconds": {"decode": 3, "other": 4},
    }
    again = run.kept(before, ["other"], "A")
    assert again == {"decode": [1], "earlier": {"decode": "one"}, "seconds": {"decode": 3}}
    later = run.kept({**again, "card": "A", "command": "two", "other": [5]}, ["verify"], "A")
    assert later["earlier"] == {"decode": "one", "other": "two"}
    assert run.kept(before, ["other"], "B") == run.kept(before, [], "A") == {}
