"""What the faces ask for: bad input is refused before anything happens, and nothing is left half done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evals import Verdict
from service.api import Service
from service.disk import disk_errors
from service.jobs import NotOurs, State
from service.settings import Settings
from tests.hub_server import HubServer
from tricks import BadInput, Cancelled

MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny-llama"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(Settings(data=tmp_path_factory.mktemp("data"))) as service:
        yield service


@pytest.fixture(scope="module")
def converted(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    service.convert(str(MODEL), out, ["flashnorm"])
    return out


def body(folder: Path) -> str:
    """The card behind its metadata."""
    return (folder / "README.md").read_text().split("\n---\n", 1)[1].lstrip()


def test_plan_shows_every_trick_where_none_is_named(service: Service) -> None:
    plan = service.plan(str(MODEL))
    assert plan.fits
    assert plan.architecture == "LlamaForCausalLM"


def test_here_and_now_needs_no_redis(converted: Path, tmp_path: Path) -> None:
    with Service(Settings(data=tmp_path / "data", redis_url="redis://127.0.0.1:1/0")) as service:
        assert service.plan(str(MODEL), ["flashnorm"]).fits
    assert not (tmp_path / "data").exists()
    assert body(converted).startswith("**UNVERIFIED**")
    assert json.loads((converted / "conversion.json").read_text())["recipe"] == ["flashnorm"]
    assert os.listdir(converted.parent) == ["out"]


def test_verify_lays_its_evidence_down_in_what_is_ours(service: Service, converted: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost so small a model most of its time
    evidence = service.verify(str(MODEL), str(converted))
    torch.set_num_threads(threads)
    assert evidence.verdict is Verdict.EQUIVALENT
    assert json.loads((converted / "evidence.json").read_text())["verdict"] == "equivalent"
    assert body(converted).startswith("**Verdict: equivalent**")


def test_a_conversion_that_is_cancelled_leaves_nothing(service: Service, tmp_path: Path) -> None:
    def stop(unit: str, done: int, total: int) -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        service.convert(str(MODEL), tmp_path / "out", ["flashnorm"], stop)
    assert os.listdir(tmp_path) == []


def test_convert_refuses_a_place_that_is_taken_or_inside_the_source(service: Service, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists"):
        service.convert(str(MODEL), tmp_path, ["flashnorm"])
    with pytest.raises(BadInput, match="no folder"):
        service.convert(str(MODEL), tmp_path / "no" / "out", ["flashnorm"])
    with pytest.raises(BadInput, match="inside the source"):
        service.convert(str(MODEL), MODEL / "out", ["flashnorm"])


@pytest.mark.parametrize(
    ("model", "tricks", "to", "said"),
    [
        (str(MODEL), ["nope"], "./out", "unknown trick 'nope'"),
        (str(MODEL), ["flashnorm:form=odd"], "./out", "form"),
        (str(MODEL), [], "./out", "no trick given"),
        (str(MODEL), ["flashnorm", "flashnorm"], "./out", "given twice"),
        (str(MODEL), ["flashnorm"], "", "no destination"),
        (str(MODEL), ["flashnorm"], str(MODEL), "did not make it"),
        ("/no/such/folder", ["flashnorm"], "./out", "not a folder here"),
        ("forge/nothing", ["flashnorm"], "./out", "not on the Hub"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    service: Service,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    tricks: list[str],
    to: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = service.jobs()
    with pytest.raises(BadInput, match=said) as error:
        service.submit(model, tricks, to)
    assert len(str(error.value).splitlines()) == 1
    assert service.jobs() == before


def test_a_submitted_job_can_be_followed_cancelled_and_retried(service: Service, tmp_path: Path) -> None:
    job = service.submit(str(MODEL), ["flashnorm:form=compat"], str(tmp_path / "out"))
    assert (job.state, job.tricks) == (State.QUEUED, ["flashnorm"])
    assert service.submit(str(MODEL), ["flashnorm"], str(tmp_path / "out")).id == job.id
    assert service.submit(str(MODEL), ["flashnorm"], str(tmp_path / "other")).id != job.id
    assert service.job(job.id) == job
    assert (service.card(job.id), service.evidence(job.id), service.job_plan(job.id)) == (None, None, None)
    with pytest.raises(NotOurs, match="is queued"):
        service.retry(job.id)
    assert service.cancel(job.id).state is State.CANCELLED
    assert service.retry(job.id).state is State.QUEUED
    assert [event.state for event in service.events(job.id)] == ["queued", "cancelled", "queued"]


def test_an_unknown_job_is_bad_input(service: Service) -> None:
    for ask in (service.job, service.events, service.cancel, service.retry, service.card, service.evidence):
        with pytest.raises(BadInput, match="there is no job"):
            ask("nope")


def test_a_destination_in_a_folder_is_kept_whole(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert service.submit(str(MODEL), ["flashnorm"], "./here").to == str(tmp_path / "here")


def test_a_full_disk_is_bad_input() -> None:
    with pytest.raises(BadInput, match="disk is full"), disk_errors(), open("/dev/full", "w") as full:
        full.write("x")


def test_who_asks_for_no_model_waits_for_no_torch() -> None:
    code = "import sys, ui.commands, workers.main; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
