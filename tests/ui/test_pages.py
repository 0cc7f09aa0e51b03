"""The HTML pieces: what comes from outside stays text, and what a card says fetches nothing."""

from __future__ import annotations

import time

import pytest

from service.jobs import Job, Stage, State
from tricks import TRICKS, BadInput, Place, Plan, parse_trick
from ui.pages import parts
from ui.pages.card import as_html
from ui.pages.escape import breakable
from ui.pages.guard import check_folders, is_loopback
from ui.pages.words import OPTIONS

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "id": "ab",
        "model": EVIL,
        "tricks": [EVIL],
        "to": EVIL,
        "state": State.RUNNING,
    }
    return Job(**{**values, "created": time.time(), "started": time.time(), **changes})  # type: ignore[arg-type]


def test_everything_from_outside_is_escaped() -> None:
    plan = Plan(
        EVIL, EVIL, (parse_trick("flashnorm"),), (Place("flashnorm", EVIL, True, EVIL),), savings={EVIL: 1}
    )
    failed = job(state=State.FAILED, reason=EVIL)
    running = job(stage=Stage.CONVERT, progress=(EVIL, 1, 2))
    pieces = [
        parts.plan_view(plan),
        parts.job_head(failed),
        parts.outcome(failed, None),
        parts.stages(running, 3.0),
        parts.jobs_table([failed]),
        parts.problem(EVIL),
    ]
    for piece in pieces:
        assert "<script" not in piece
        assert "<img" not in piece


def test_only_web_addresses_become_links() -> None:
    class Told:
        verdict = type("V", (str,), {"publishable": True})("equivalent")
        reasons = ()

        def headline(self) -> list[tuple[str, str]]:
            return []

    done = job(state=State.PUBLISHED, result="javascript:alert(1)")
    assert 'href="javascript' not in parts.outcome(done, Told())  # type: ignore[arg-type]


def test_a_card_is_shown_without_metadata_html_or_pictures() -> None:
    card = "---\nlicense: mit\n---\n# Title\n\n<img src=http://far/x> ![p](http://far/y) `a<b`\n\n"
    shown = as_html(
        card + "[a](javascript:alert(1)) [b](evidence.json) [c](https://far/z)\n\n| d |\n|-|\n| e |"
    )
    assert "license" not in shown
    assert "<img" not in shown
    assert "<em>p</em>" in shown
    assert "<code>a&lt;b</code>" in shown
    assert "<h1>Title</h1>" in shown
    assert "<td>e</td>" in shown
    assert shown.count("href=") == 1
    assert 'href="https://far/z"' in shown


def test_stages_before_the_running_one_are_done() -> None:
    shown = parts.stages(job(stage=Stage.CONVERT, progress=("bytes", 500, 1000)), None)
    assert shown.count("ts-done") == 3
    assert 'aria-valuenow="50"' in shown
    assert parts.stages(job(state=State.PUBLISHED, stage=Stage.PUBLISH), None).count("ts-done") == 6


def test_a_cancelled_job_no_longer_waits() -> None:
    assert "waiting for a worker" in parts.job_head(job(state=State.QUEUED, started=None))
    assert "waiting" not in parts.job_head(job(state=State.CANCELLED, started=None))


def test_a_rejected_job_says_why_in_the_queue() -> None:
    shown = parts.jobs_table([job(state=State.REJECTED, verdict="different", reason="0.5 is above 0.1")])
    assert "0.5 is above 0.1" in shown


def test_names_may_break_and_numbers_may_not() -> None:
    assert breakable("model.layers.0.self_attn: 3.29e-05") == (
        "model.<wbr>layers.<wbr>0.<wbr>self_<wbr>attn: 3.29e-05"
    )


def test_the_figures_that_say_most_come_first() -> None:
    rows = [("KL divergence", "1e-5"), ("perplexity", "31.8"), ("total variation", "0.1")]
    shown = parts.figures(rows)
    before, _, after = shown.partition("<details")
    assert "31.8" in before
    assert "KL divergence" in after
    assert "2 more figures" in after
    assert "<details" not in parts.figures([("a figure of a kind to come", "1")])


def test_every_option_is_explained() -> None:
    assert {trick: set(options) for trick, options in TRICKS.items() if options} == {
        trick: set(options) for trick, options in OPTIONS.items()
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "name", ["/etc", "../x", "file:///etc/passwd", "./models", "a/../../b", "~/x", "a/b/c", "C:\\x"]
)
def test_paths_are_refused_where_others_can_reach_the_page(name: str) -> None:
    with pytest.raises(BadInput):
        check_folders(False, model=name)
    check_folders(True, model=name)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/na.me-1@main", "org/name@refs/pr/1"])
def test_hub_ids_pass(name: str) -> None:
    check_folders(False, model=name)
