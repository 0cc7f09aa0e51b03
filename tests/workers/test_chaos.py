"""Faults in the midst of jobs, on a real deployment, in short; `make chaos` is the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.run import SOURCE, Chaos
from service.jobs import Stage

SEED = 9


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Iterator[Chaos]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REDIS_URL", "REDIS_PASSWORD_FILE", "HF_ENDPOINT", "HF_TOKEN", "HF_HOME"):
            patch.setenv(name, "")  # the cluster sets them; they are put back
        with Cluster(tmp_path_factory.mktemp("chaos")) as cluster:
            cluster.hub.add_model(SOURCE, small_llama)
            yield Chaos(cluster, SEED)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("kill -9 child", Stage.CONVERT),
        ("kill -9 worker", Stage.VERIFY),
        ("SIGTERM worker", Stage.VERIFY),
        ("kill -9 Redis", Stage.PLAN),
        ("network cut", Stage.PUBLISH),
        ("worker paused", Stage.PUBLISH),
    ],
)
def test_no_accepted_job_is_lost_or_published_twice(chaos: Chaos, name: str, stage: Stage) -> None:
    fault = next(fault for fault in FAULTS if fault.name == name)
    assert chaos.cell(fault, stage, jobs=2, rounds=1).wrong == []


def test_what_a_killed_web_process_had_accepted_is_done(chaos: Chaos) -> None:
    assert chaos.kill_web(jobs=4, rounds=1).wrong == []


def test_nothing_is_left_over(chaos: Chaos) -> None:
    assert chaos.leftovers() == []
