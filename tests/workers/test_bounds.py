"""What one job may take: time, memory, disk. Whatever it exceeds, it alone ends, and the reason is told."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.api import Service
from service.jobs import Job, State
from service.redis_server import running_redis
from service.settings import Settings
from tricks import make_plan, parse_trick, read_checkpoint, silent
from workers.forks import Forks
from workers.process import Allowance, ChildProcess, Crashed, DiskFull
from workers.run import run_job
from workers.worker import Worker


def never() -> bool:
    return False


def run(settings: Settings, forks: Forks, source: Path, to: Path) -> Job:
    with running_redis(settings) as url, Service(replace(settings, redis_url=url)) as service:
        job = service.submit(str(source), ["flashnorm"], str(to))
        with Worker(url, settings, forks=forks) as worker:
            attempt = worker.this_job(job.id)
            assert attempt is not None
            done = run_job(attempt, worker)
    assert done is not None
    return done


@pytest.mark.parametrize(
    ("bound", "cause", "said"),
    [
        ({"time_limit": 1e-6}, "time limit", "was not done after"),
        ({"memory": 1_000_000}, "memory", "memory"),
    ],
)
def test_a_job_that_takes_too_much_is_failed_with_the_reason(
    settings: Settings,
    forks: Forks,
    small_llama: Path,
    tmp_path: Path,
    bound: dict[str, float],
    cause: str,
    said: str,
) -> None:
    done = run(replace(settings, **bound), forks, small_llama, tmp_path / "out")  # type: ignore[arg-type]
    assert (done.state, done.cause) == (State.FAILED, cause), done.reason
    assert said in str(done.reason)
    # The next one has what it needs.
    assert run(settings, forks, small_llama, tmp_path / "other").state is State.PUBLISHED


def test_a_child_over_its_memory_is_killed(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Allowance, "limits", {})  # the kernel's own limit would be met first
    with ChildProcess(forks, tmp_path, never, 1, Allowance(memory=1000)) as child:
        checkpoint = tmp_path / "fifo"
        os.mkfifo(checkpoint)  # the child waits for a writer that never comes
        with pytest.raises(Crashed, match=r"needs more than the 0\.0 GB of memory") as crashed:
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["flashnorm"])
        assert crashed.value.cause == "memory"
        assert not psutil.pid_exists(child.pid)


def test_a_file_beyond_its_size_is_a_full_disk_and_leaves_nothing(
    forks: Forks, small_llama: Path, tmp_path: Path
) -> None:
    plan = make_plan(read_checkpoint(small_llama), [parse_trick("flashnorm")])
    with ChildProcess(forks, tmp_path, never, 1, Allowance(file=20_000)) as child:
        ask = {"plan": plan.to_json(), "source": str(small_llama), "out": str(tmp_path / "out")}
        with pytest.raises(DiskFull):
            child.ask("convert", silent, **ask)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
