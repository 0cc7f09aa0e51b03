"""A process that was started with a pipe on its standard input ends with whoever holds the other end."""

from __future__ import annotations

import subprocess
import sys

_BEGUN = "import time; from workers.main import stop_with_stdin; stop_with_stdin(); print(flush=True); "


def _start(then: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _BEGUN + then], stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_it_may_end_before_the_pipe_does_without_a_fatal_error() -> None:
    process = _start("time.sleep(0.2)")
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_it_stops_when_the_pipe_closes() -> None:
    process = _start("time.sleep(60)")
    _, said = process.communicate(timeout=30)
    assert process.returncode == -15
    assert said == b""
