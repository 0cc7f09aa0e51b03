"""Figures and lists as people read them."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricks import Place
from ui.progress import Progress
from ui.text import ago, amount, duration, group_places, one_line, size


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_950_000, "1.0 GB"),
        (123_456_789, "123 MB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (59.6, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_duration_names_no_unit_of_which_there_is_none() -> None:
    assert [duration(seconds) for seconds in (59.7, 900, 7200, 7260)] == [
        "1 min",
        "15 min",
        "2 h",
        "2 h 1 min",
    ]


def test_amounts_and_ages() -> None:
    assert amount("tokens", 12345) == "12,345 tokens"
    assert amount("bytes", 2_000_000) == "2.0 MB"
    assert (ago(5), ago(61), ago(7300), ago(200_000)) == (
        "just now",
        "1 minute ago",
        "2 hours ago",
        "2 days ago",
    )


@given(st.text())
def test_one_line_never_moves_the_cursor(text: str) -> None:
    assert one_line(text).isprintable()


def test_equal_layers_become_one_line() -> None:
    places = [
        Place("flashnorm", f"model.layers.{n}.input_layernorm", n != 2, "fold into its consumers")
        for n in range(5)
    ]
    places.append(Place("flashnorm", "model.norm", False, "the head is tied"))
    groups = group_places(places)
    assert [(g.where, g.fits, g.size) for g in groups] == [
        ("model.layers.[0-1,3-4].input_layernorm", True, 4),
        ("model.layers.2.input_layernorm", False, 1),
        ("model.norm", False, 1),
    ]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_a_few_plain_lines() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(stream, clock=lambda: now[0])
    progress.stage("convert")
    for step in range(200):
        now[0] += 0.1
        progress("bytes", (step + 1) * 1_000_000, 200_000_000)
    progress.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "convert ..."
    assert " MB of 200 MB" in lines[1]
    assert "10.0 MB/s" in lines[1]
    assert lines[-1].startswith("✓ convert")
    assert "200 MB" in lines[-1]
    assert len(lines) < 8
    assert "\x1b" not in stream.getvalue()


def test_progress_on_a_terminal_rewrites_its_line() -> None:
    now = [0.0]
    stream = _Terminal()
    progress = Progress(stream, clock=lambda: now[0])
    progress.stage("verify")
    for step in range(10):
        now[0] += 0.3
        progress("tokens", (step + 1) * 100, 1000)
    progress.stage("publish")
    progress.end("✕")
    shown = stream.getvalue()
    assert shown.count("\n") == 2
    assert "100%" in shown
    assert "1,000 of 1,000 tokens" in shown
    assert "333 tokens/s" in shown
