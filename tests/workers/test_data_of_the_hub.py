"""Tasks and texts of the Hub in a job: fetched without a token before the model, read without a network."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pytest

from evals.text import held_out
from service.api import Service
from service.evidence_request import EvidenceRequest
from service.jobs import Job, State
from service.redis_server import running_redis
from service.settings import Settings
from tests.hub_server import HubServer
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker
from workers.workspace import Workspace

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
FULL = "base: full\ntokens: 300\nwindow: 128\ntasks: [tricksmith_copy, arc_challenge]\nlimit: 6\n"
TEXT = "base: full\ntokens: 300\nwindow: 128\ntasks: []\n"
SPLITS = ("train", "validation", "test")
CARD = "---\nconfigs:\n- config_name: {config}\n  data_files:\n" + "".join(
    f"  - split: {split}\n    path: {{config}}/{split}-*\n" for split in SPLITS
)


def parquet(rows: list[dict[str, object]]) -> bytes:
    file = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file.getvalue()


def add(hub: HubServer, name: str, config: str, rows: list[dict[str, object]], **how: bool) -> None:
    files = {f"{config}/{split}-00000-of-00001.parquet": parquet(rows) for split in SPLITS}
    files["README.md"] = (CARD.format(config=config) + "---\n").encode()
    hub.add_model(f"datasets/{name}", files, **how)


def add_wikitext(hub: HubServer, **how: bool) -> None:
    lines: list[dict[str, object]] = [{"text": line} for line in held_out().splitlines()]
    add(hub, "Salesforce/wikitext", "wikitext-2-raw-v1", lines, **how)


def add_arc(hub: HubServer) -> None:
    choices = {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]}
    rows: list[dict[str, object]] = [
        {"id": str(n), "question": f"What is {n % 4 + 1}?", "choices": choices, "answerKey": "ABCD"[n % 4]}
        for n in range(8)
    ]
    add(hub, "allenai/ai2_arc", "ARC-Challenge", rows)


def run(
    forks: Forks, service: Service, settings: Settings, out: Path, recipe: str, model: str | Path = TINY
) -> Job:
    job = service.submit(str(model), ["flashnorm"], str(out), evidence=EvidenceRequest(recipe))
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        attempt = worker.this_job(job.id)
        assert attempt is not None
        done = run_job(attempt, worker)
    assert done is not None
    return done


def test_a_job_reads_a_text_and_a_task_of_the_hub(
    forks: Forks, service: Service, settings: Settings, hub: HubServer, tmp_path: Path
) -> None:
    add_wikitext(hub)
    add_arc(hub)
    done = run(forks, service, settings, tmp_path / "out", FULL)
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    evidence = service.evidence(done.id)
    assert evidence is not None
    assert evidence.settings["text"] == "wikitext-2"
    assert [(task.task, task.documents) for task in evidence.tasks] == [
        ("tricksmith_copy", 6),
        ("arc_challenge", 6),
    ]
    asked = [request for request in hub.requests if "datasets/" in request.path]
    assert asked
    assert {request.user for request in asked} == {None}  # though this machine has a token
    fetches = [
        r.path for r in asked + hub.requests if r.method == "GET" and r.path.endswith(".parquet") and r.sent
    ]
    assert len(set(fetches)) == 2  # of three splits alike, one
    told = [e for e in service.events(done.id) if e.kind == "progress" and e.unit == "bytes"]
    fetched = [e for e in told if str(e.stage) == "fetch"]
    assert fetched
    assert fetched[-1].done == fetched[-1].total > 1000


def gated(hub: HubServer) -> None:
    add_wikitext(hub, gated=True)


def scripted(hub: HubServer) -> None:
    hub.add_model("datasets/Salesforce/wikitext", {"README.md": b"# text\n", "wikitext.py": b"print(1)\n"})


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (gated, "need a key or an accepted licence"),
        (lambda hub: None, "not on the Hub"),
        (scripted, "come as code, which is not run"),
    ],
    ids=["gated", "absent", "code"],
)
def test_data_that_cannot_be_had_end_the_job_before_the_model_is_fetched(
    forks: Forks,
    service: Service,
    settings: Settings,
    hub: HubServer,
    tmp_path: Path,
    arrange,
    words: str,
) -> None:
    hub.add_model("smith/tiny", TINY)
    arrange(hub)
    done = run(forks, service, settings, tmp_path / "out", TEXT, "smith/tiny")
    assert (done.state, str(done.stage), done.cause) == (State.FAILED, "fetch", "request")
    assert words in str(done.reason)
    assert "wikitext-2" in str(done.reason)
    assert hub.served(".safetensors") < 1_000_000  # headers alone


def test_a_hub_that_is_away_and_a_disk_that_is_full_are_said(
    forks: Forks,
    service: Service,
    settings: Settings,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_wikitext(hub)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "left", lambda _: 1000)
        done = run(forks, service, settings, tmp_path / "full", TEXT)
    assert "the data set Salesforce/wikitext needs" in str(done.reason)
    assert "GB are free here" in str(done.reason)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run(forks, service, settings, tmp_path / "away", TEXT)
    assert (done.state, done.cause) == (State.FAILED, "hub")
    assert "out of reach" in str(done.reason)
