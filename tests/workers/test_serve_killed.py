"""`tricksmith serve` as a user runs it, killed with all that it had started: nothing accepted is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.chaos.cluster import free_port
from service.api import Service
from service.jobs import State
from service.redis_server import socket_path
from service.settings import Settings

WITHIN = 120.0  # seconds


def wait_for(true: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def start(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ui.cli", "serve", "--port", str(free_port())]
    env = os.environ | {"TRICKSMITH_DATA": str(settings.data), "TRICKSMITH_LEASE": "2"}
    env = {name: value for name, value in env.items() if name != "REDIS_URL"}
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out)


def everything(settings: Settings) -> list[psutil.Process]:
    """All that works on this data folder: the page, workers, fork servers, children, Redis."""
    found = []
    for process in psutil.process_iter():
        try:
            seen = [*process.cmdline(), process.cwd(), process.environ().get("TRICKSMITH_DATA", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(settings.data) in word for word in seen):
            found.append(process)
    return found


def test_a_killed_serve_goes_on_with_all_its_jobs_when_it_is_started_again(
    tmp_path: Path, small_llama: Path
) -> None:
    settings, log = Settings(data=tmp_path / "data"), tmp_path / "log"
    with start(settings, log) as serve:
        wait_for(lambda: socket_path(settings.data).exists(), log)
        with Service(settings) as service:
            jobs = [
                service.submit(str(small_llama), ["flashnorm"], str(tmp_path / f"out{n}")) for n in range(2)
            ]
            wait_for(lambda: service.job(jobs[0].id).state is State.RUNNING, log)
            # As a machine does that is reset: nobody says goodbye.
            for process in everything(settings):
                process.send_signal(signal.SIGSTOP)
            left = everything(settings)
            assert len(left) >= 4  # the page, Redis, a worker, its fork server, beat
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=20)
            serve.wait()
    with start(settings, log) as serve, Service(settings) as service:
        wait_for(lambda: all(service.job(job.id).state.final for job in jobs), log)
        ended = [service.job(job.id) for job in jobs]
        serve.terminate()
        assert serve.wait(60) == 0
    assert [(job.state, job.reason) for job in ended] == [(State.PUBLISHED, None)] * len(jobs)
    assert all((Path(job.to) / "evidence.json").is_file() for job in ended)
    wait_for(lambda: not everything(settings), log)
