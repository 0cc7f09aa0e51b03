"""A job's process that started others, which hid: none of them outlives the job, whatever ends it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.api import Service
from service.jobs import Job, State
from service.redis_server import running_redis
from service.settings import Settings
from workers.forks import Forks
from workers.process import Allowance
from workers.run import run_job
from workers.worker import Worker

HIDES = """
import os, sys, time
from workers import child, forkserver

def hide(request, report):
    # One in the group, one in a session of its own, one that forked twice and so left its parent too.
    for how in ("plain", "session", "orphan"):
        if os.fork() == 0:
            if how != "plain":
                os.setsid()
            if how == "orphan" and os.fork() != 0:
                os._exit(0)
            with open(f"{os.environ['TMPDIR']}/{how}.pid", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)
    time.sleep(600)

child.DEEDS["verify"] = hide
sys.argv = ["", sys.argv[-1]]
forkserver.main()
"""


@pytest.fixture(scope="module")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A real fork server whose children, asked to verify, start others and wait."""
    folder = tmp_path_factory.mktemp("hiding")
    (folder / "hides.py").write_text(HIDES)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -P {folder}/hides.py "$4"\n')
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "executable", str(python))
        with Forks(folder / "log") as forks:
            forks.wait_until_ready()
            yield forks


def hidden(forks: Forks) -> list[psutil.Process]:
    """The processes that a job's process has started, once all three are there."""
    folder = forks._log.parent
    deadline = time.monotonic() + 60
    while len(found := sorted(folder.glob("*.pid"))) < 3 or not all(path.read_text() for path in found):
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    processes = [psutil.Process(int(path.read_text())) for path in found]
    for path in found:
        path.unlink()
    return processes


def run_until(
    settings: Settings, forks: Forks, source: Path, to: Path, strike: Callable[[Service, Job], object]
) -> tuple[Job, list[psutil.Process]]:
    """Run a job that starts others, and strike then; how it ended, and the others."""
    seen: list[psutil.Process] = []
    with running_redis(settings) as url, Service(replace(settings, redis_url=url)) as service:
        job = service.submit(str(source), ["flashnorm"], str(to))

        def go() -> None:
            seen.extend(hidden(forks))
            strike(service, job)

        with Worker(url, settings, forks=forks) as worker:
            attempt = worker.this_job(job.id)
            assert attempt is not None
            thread = threading.Thread(target=go, daemon=True)
            thread.start()
            done = run_job(attempt, worker)
            thread.join(60)
    assert done is not None
    assert len(seen) == 3
    return done, seen


def cancel(service: Service, job: Job) -> None:
    service.cancel(job.id)


def wait(service: Service, job: Job) -> None:
    """Nothing: the time limit strikes."""


@pytest.mark.parametrize(
    ("strike", "limit", "state", "cause"),
    [(cancel, 3600.0, State.CANCELLED, None), (wait, 3.0, State.FAILED, "time limit")],
)
def test_a_job_that_is_stopped_leaves_none_of_its_processes(
    settings: Settings,
    hiding: Forks,
    small_llama: Path,
    tmp_path: Path,
    strike: Callable[[Service, Job], object],
    limit: float,
    state: State,
    cause: str | None,
) -> None:
    given = replace(settings, time_limit=limit, grace=0.5)
    done, others = run_until(given, hiding, small_llama, tmp_path / "out", strike)
    assert (done.state, done.cause) == (state, cause), done.reason
    assert not psutil.wait_procs(others, timeout=10)[1]


def test_a_child_that_is_killed_leaves_none_of_its_processes(
    settings: Settings, hiding: Forks, small_llama: Path, tmp_path: Path
) -> None:
    def kill(service: Service, job: Job) -> None:
        (child,) = psutil.Process(hiding.pid).children()
        child.kill()

    done, others = run_until(settings, hiding, small_llama, tmp_path / "out", kill)
    assert (done.state, done.cause) == (State.FAILED, "killed")
    assert not psutil.wait_procs(others, timeout=10)[1]


def test_a_worker_that_dies_takes_all_of_its_jobs_processes_along(
    small_llama: Path, hiding: Forks, tmp_path: Path
) -> None:
    """The worker's end of all pipes closes, as it does when the kernel ends it."""
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    made = hiding.fork(tmp_path, log, log, env={}, limits=Allowance().limits, threads=1)
    os.close(log)
    os.write(made.stdin, b'{"do": "verify"}\n')
    others = [psutil.Process(made.pid), *hidden(hiding)]
    made.close()
    assert not psutil.wait_procs(others, timeout=10)[1]
