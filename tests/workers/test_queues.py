"""Which workers a job goes to, and that on a GPU it has one to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.api import Service
from service.evidence_request import EvidenceRequest
from service.jobs import State
from service.lanes import Queue
from service.redis_server import running_redis
from service.settings import Settings
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker


@contextmanager
def living(settings: Settings, forks: Forks, queue: Queue) -> Iterator[Worker]:
    with running_redis(settings) as url, Worker(url, settings, [queue], forks=forks) as worker:
        worker.registry.say(worker.about())
        yield worker


def test_size_and_expected_time_choose_the_queue(
    settings: Settings, forks: Forks, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    size = sum(path.stat().st_size for path in small_llama.glob("*.safetensors"))
    made = iter(range(100))

    def lane(evidence: EvidenceRequest | None = None, **changes: Any) -> str:
        with Service(replace(settings, **changes)) as service:
            to = str(tmp_path / f"out{next(made)}")
            return service.submit(str(small_llama), ["flashnorm"], to, evidence=evidence).lane

    long = EvidenceRequest("standard")
    with running_redis(settings):  # stays for all of them
        assert lane(gpu_from=1, large_from=2 * size) == "cpu/people/small"  # no worker has a GPU
        with living(settings, forks, Queue.GPU):
            assert lane() == "cpu/people/small"
            assert lane(gpu_from=1) == "gpu/people/small"
            assert lane(large_from=1) == "cpu/people/large"
            assert lane(long) == "cpu/people/small"
            assert lane(long, long_from=0.001) == "gpu/people/large"


def test_each_job_on_a_gpu_sees_one_that_no_other_has(
    settings: Settings, forks: Forks, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    settings = replace(settings, gpu_from=1, concurrency=3)
    seen: list[str] = []
    fork = Forks.fork

    def told(self: Forks, *args: Any, **more: Any) -> Any:
        seen.append(more["env"]["CUDA_VISIBLE_DEVICES"])
        assert worker.gpus.busy <= 2
        return fork(self, *args, **more)

    monkeypatch.setattr(Forks, "fork", told)
    with living(settings, forks, Queue.GPU) as worker, Service(settings) as service:
        jobs = [service.submit(str(small_llama), ["flashnorm"], str(tmp_path / f"{n}")) for n in range(3)]
        assert {job.lane for job in jobs} == {"gpu/people/small"}
        attempts = [worker.next_job(Queue.GPU) for _ in jobs]
        threads = [
            threading.Thread(target=run_job, args=[attempt, worker]) for attempt in attempts if attempt
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [service.job(job.id).state for job in jobs] == [State.PUBLISHED] * 3
    assert len(seen) == 3
    assert set(seen) == {"7", "8"}
    assert worker.gpus.busy == 0
