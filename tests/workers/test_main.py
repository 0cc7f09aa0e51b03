"""Workers as processes of their own: they take jobs from the queue, and no job dies with one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.api import Service
from service.jobs import Job, Stage, State
from service.settings import Settings


@contextmanager
def worker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose jobs are given to another one when it is silent for two seconds."""
    log = settings.data.parent / "worker.log"
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", "workers.main", "worker", "--data", str(settings.data)],
            stdout=out,
            stderr=out,
            env=os.environ | {"TRICKSMITH_LEASE": "2"},
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


def wait_for(service: Service, job: Job, *states: State, stage: Stage | None = None) -> Job:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        job = service.job(job.id)
        if job.state in states and (stage is None or job.stage is stage):
            return job
        time.sleep(0.05)
    raise AssertionError(f"still {job}")


def test_the_job_of_a_killed_worker_is_finished_by_another(
    service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    with worker(settings) as first:
        wait_for(service, job, State.RUNNING, stage=Stage.VERIFY)
        first.kill()
    with worker(settings):
        done = wait_for(service, job, State.PUBLISHED, State.FAILED, State.REJECTED)
    assert (done.state, done.attempts) == (State.PUBLISHED, 2)


def test_a_stopped_worker_gives_its_job_back_at_once(
    service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    with worker(settings) as first:
        wait_for(service, job, State.RUNNING, stage=Stage.VERIFY)
        first.terminate()
        assert first.wait(30) == 0
    assert service.job(job.id).state is State.QUEUED
    with worker(settings):
        assert wait_for(service, job, State.PUBLISHED, State.FAILED).state is State.PUBLISHED
