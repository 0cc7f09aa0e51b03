"""What a job measures is what was asked for; the source's answers to tasks are kept for the next job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.api import Service
from service.evidence_request import EvidenceRequest
from service.jobs import Job, State
from service.redis_server import running_redis
from service.settings import Settings
from tricks import BadInput
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
OWN = "tokens: 300\ntasks: [tricksmith_copy]\nlimit: 6\n"


def run(settings: Settings, forks: Forks, job: Job) -> Job:
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        attempt = worker.this_job(job.id)
        assert attempt is not None
        done = run_job(attempt, worker)
    assert done is not None
    return done


def test_a_job_measures_what_was_asked_and_asks_each_source_once(
    forks: Forks, service: Service, settings: Settings, tmp_path: Path
) -> None:
    asked = EvidenceRequest(OWN, max_memory="3GiB")
    first = service.submit(str(TINY), ["flashnorm"], str(tmp_path / "a"), evidence=asked)
    assert first.evidence_asked is not None
    assert first.evidence_asked["recipe"]["tasks"] == ["tricksmith_copy"]
    assert 0 < first.evidence_asked["seconds"] < 600
    second = service.submit(str(TINY), ["flashnorm:form=strict"], str(tmp_path / "b"), evidence=asked)
    requests = {}
    for job in (first, second):
        done = run(settings, forks, job)
        assert (done.state, done.reason) == (State.PUBLISHED, None)
        requests[job.id] = [
            e for e in service.events(job.id) if e.kind == "progress" and e.unit == "requests"
        ]
    before, after = service.evidence(first.id), service.evidence(second.id)
    assert before is not None
    assert after is not None
    assert before.settings["recipe"]["tokens"] == 300
    assert before.settings["memory"]["cpu"] == 3 * 2**30
    assert [task.cached for task in (*before.tasks, *after.tasks)] == [False, True]
    # Progress is told seldom, but always at an end: there is one for each model that was asked.
    ends = {job: sum(e.done == e.total for e in events) for job, events in requests.items()}
    assert ends[second.id] < ends[first.id]
    assert list(settings.task_results.glob("*.json"))


def test_other_evidence_is_another_job_and_the_usual_one_is_not(service: Service, tmp_path: Path) -> None:
    def submit(evidence: EvidenceRequest | None) -> str:
        return service.submit(str(TINY), ["flashnorm"], str(tmp_path / "out"), evidence=evidence).id

    usual = submit(None)
    assert submit(EvidenceRequest()) == usual
    assert submit(EvidenceRequest("standard")) != usual


def test_a_task_that_does_not_exist_ends_the_job_before_the_download(
    forks: Forks, service: Service, settings: Settings, tmp_path: Path
) -> None:
    asked = EvidenceRequest(tasks=("no_such_task",))
    job = service.submit(str(TINY), ["flashnorm"], str(tmp_path / "out"), evidence=asked)
    done = run(settings, forks, job)
    assert (done.state, str(done.stage)) == (State.FAILED, "fetch")
    assert "no task 'no_such_task'" in str(done.reason)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (EvidenceRequest("splendid"), "no recipe 'splendid'; known: quick, standard, full, or write lines"),
        (EvidenceRequest("tokens: many"), "tokens"),
        (EvidenceRequest("tokens: [1"), "YAML"),
        (EvidenceRequest("x" * 30_000), "characters"),
        (EvidenceRequest(max_memory="much"), "memory limit"),
        (EvidenceRequest(tasks=("/tmp/task.yaml",)), "command line"),
        (EvidenceRequest("tasks: [task.yaml]"), "command line"),
        (EvidenceRequest(text="/etc/passwd"), "data set"),
        (EvidenceRequest(text="../../etc/passwd"), "data set"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(
    service: Service, tmp_path: Path, asked: EvidenceRequest, word: str
) -> None:
    with pytest.raises(BadInput, match=word):
        service.submit(str(TINY), ["flashnorm"], str(tmp_path / "out"), evidence=asked)
    assert service.jobs() == []


def test_whoever_runs_the_installation_may_name_files(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(TINY / "README.md", tmp_path / "text.txt")
    asked = EvidenceRequest(text="text.txt", files=True)
    job = service.submit(str(TINY), ["flashnorm"], str(tmp_path / "out"), evidence=asked)
    assert job.evidence_asked is not None
    assert job.evidence_asked["recipe"]["text"] == str(tmp_path / "text.txt")
