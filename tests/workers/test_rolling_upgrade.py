"""Two releases on one Redis, as processes: each job is done once, by a worker that knows its record."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from service.api import Service
from service.jobs import SCHEMA, State
from service.redis_server import running_redis
from service.registry import Registry
from service.settings import Settings
from tests.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tricks", "evals", "service", "workers", "ui")


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This release's files with the next schema, whose records say one thing more."""
    folder = tmp_path_factory.mktemp("next")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    jobs = folder / "service" / "jobs.py"
    text = jobs.read_text().replace(f"\nSCHEMA = {SCHEMA}\n", f"\nSCHEMA = {SCHEMA + 1}\n")
    text = text.replace("    lost: int = 0\n", '    mood: str = "new"\n    lost: int = 0\n', 1)
    assert text.count("mood") == 1
    jobs.write_text(text)
    return folder


@contextmanager
def worker(release: Path, url: str, data: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a release, on a data folder of its own."""
    env = environment(release, url, data)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.main", "worker"], env=env, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) is not None


def environment(release: Path, url: str, data: Path) -> dict[str, str]:
    data.mkdir(exist_ok=True)
    return os.environ | {
        "PYTHONPATH": str(release),
        "REDIS_URL": url,
        "TRICKSMITH_DATA": str(data),
        "TRICKSMITH_TOKEN_KEY": "ab" * 32,
    }


def wait_for(true: Callable[[], object], *logs: Path) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in logs if log.exists())
        time.sleep(0.05)


def test_two_releases_share_the_work_and_nothing_is_lost_or_done_twice(
    hub: HubServer, small_llama: Path, next_release: Path, tmp_path: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    old_log, new_log = tmp_path / "old.log", tmp_path / "new.log"
    with ExitStack() as stack:
        url = stack.enter_context(running_redis(Settings(data=tmp_path / "redis")))
        settings = replace(Settings(data=tmp_path / "web"), redis_url=url, token_key="ab" * 32)
        service = stack.enter_context(Service(settings))
        registry = stack.enter_context(closing(Registry(url)))
        old = stack.enter_context(worker(ROOT, url, tmp_path / "a", old_log))
        hub.fail("GET /forge/new/resolve/.*safetensors", delay=6.0)  # the old worker is long at its job
        first = service.submit("forge/new", ["flashnorm"], "smith/first")
        wait_for(lambda: service.job(first.id).state is State.RUNNING, old_log)

        # The new page goes up, and takes a job; nobody is there for it yet but the old worker, which is free
        # for it only when it has ended the first.
        submit = [sys.executable, "-P", "-m", "ui.cli", "submit", "forge/new", "--trick", "flashnorm"]
        asked = subprocess.run(
            [*submit, "--to", "smith/second", "--json"],
            env=environment(next_release, url, tmp_path / "c"),
            capture_output=True,
            text=True,
            check=True,
        )
        second = json.loads(asked.stdout)
        assert (second["schema"], second["mood"]) == (SCHEMA + 1, "new")
        third = service.submit("forge/new", ["flashnorm"], "smith/third")  # and the old page one more

        hub.faults.clear()
        left_alone = re.compile(rf"job {second['id']} waits for a newer worker: its record has schema")
        wait_for(lambda: left_alone.search(old_log.read_text()), old_log)
        wait_for(lambda: service.job(first.id).state.final, old_log)
        assert service.job(second["id"]).state is State.QUEUED

        new = stack.enter_context(worker(next_release, url, tmp_path / "b", new_log))
        jobs = [first.id, second["id"], third.id]
        wait_for(lambda: all(service.job(job_id).state.final for job_id in jobs), old_log, new_log)
        pids = {about.id: about.pid for about in registry._ask()}
        ended = [service.job(job_id) for job_id in jobs]
        assert [(job.state, job.reason, job.attempts) for job in ended] == [(State.PUBLISHED, None, 1)] * 3
        assert pids[str(ended[0].worker)] == old.pid
        assert pids[str(ended[1].worker)] == new.pid
        for to in ("smith/first", "smith/second", "smith/third"):
            assert [commit.title.split(" ")[0] for commit in hub.repo(to).commits] == ["initial", "flashnorm"]
        assert len(left_alone.findall(old_log.read_text())) == 1  # once, not each time that it is called
