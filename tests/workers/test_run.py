"""One job from stage to stage: published, rejected, failed, cancelled, resumed; with real parts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file
from transformers import OlmoConfig, OlmoForCausalLM

from service.api import Service
from service.jobs import Job, Stage, State
from service.redis_server import running_redis
from service.settings import Settings
from tests.hub_server import HubServer
from tests.workers.running import Runner, in_verify, on_event
from tricks import Plan, make_plan, parse_trick, read_checkpoint
from workers.forks import Forks
from workers.marks import Marks
from workers.process import ChildProcess, DiskFull
from workers.run import one_line
from workers.worker import Worker


def stages_worked(service: Service, job: Job) -> list[str]:
    """The stages that told progress since the job was last begun: those that did not merely pass on."""
    events = service.events(job.id)
    begun = max(index for index, event in enumerate(events) if event.state == "running")
    return list(dict.fromkeys(str(event.stage) for event in events[begun:] if event.kind == "progress"))


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and "workers.forkserver" in child.cmdline()
        and "workers.forkserver" in (child.parent() or child).cmdline()
    ]


def test_a_job_is_published_with_all_its_papers(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(service.submit(str(small_llama), ["flashnorm"], str(out)))
    assert (done.state, done.verdict, done.result) == (State.PUBLISHED, "equivalent", str(out))
    papers = {"config.json", "README.md", "conversion.json", "evidence.json", "evidence.png"}
    assert papers <= set(os.listdir(out))
    assert service.card(done.id) == (out / "README.md").read_text()
    assert "](evidence.png)" in (out / "README.md").read_text()
    assert (out / "evidence.png").read_bytes().startswith(b"\x89PNG")
    assert service.picture(done.id) == (out / "evidence.png").read_bytes()
    evidence, plan = service.evidence(done.id), service.job_plan(done.id)
    assert evidence is not None
    assert evidence.to_json() == json.loads((out / "evidence.json").read_text())
    assert plan is not None
    assert plan.fits
    stages = [event.stage for event in service.events(done.id) if event.kind == "stage"]
    assert stages == [stage.value for stage in Stage]
    assert not (settings.work / done.id).exists()
    assert children() == []


def test_a_hub_job_is_published_to_the_hub_and_no_token_is_written_down(
    run: Runner, service: Service, settings: Settings, small_llama: Path, hub: HubServer
) -> None:
    files = {path.name: path.read_bytes() for path in small_llama.iterdir()}
    hub.add_model("forge/small", files)
    job = service.submit("forge/small", ["flashnorm"], "smith/small-flashnorm")
    done = run(job)
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    assert done.result is not None
    assert done.result.endswith("smith/small-flashnorm")
    for path in settings.data.rglob("*"):
        if path.is_file():
            assert b"hf_smith" not in path.read_bytes()


def test_a_failed_job_keeps_its_reason_and_goes_on_where_it_was(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = service.submit(str(small_llama), ["flashnorm"], str(out))
    out.mkdir()
    failed = run(job)
    assert failed.state is State.FAILED
    assert "Tricksmith did not make it" in str(failed.reason)
    assert os.listdir(out) == []
    out.rmdir()
    assert service.retry(job.id).state is State.QUEUED
    done = run(job)
    assert (done.state, done.reason, done.attempts) == (State.PUBLISHED, None, 2)
    assert stages_worked(service, job) == ["publish"]


def test_a_product_that_changed_under_its_mark_is_made_anew(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = service.submit(str(small_llama), ["flashnorm"], str(out))
    out.mkdir()
    run(job)
    out.rmdir()
    weights = settings.work / job.id / "converted" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\0\0")
    service.retry(job.id)
    assert run(job).state is State.PUBLISHED
    assert stages_worked(service, job) == ["convert", "verify", "publish"]


def test_a_conversion_that_is_not_its_source_is_rejected_and_goes_nowhere(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = service.submit(str(small_llama), ["flashnorm"], str(out))
    out.mkdir()
    run(job)
    out.rmdir()
    # An error in the converting code, planted: one gain is still there after it was folded.
    folder = settings.work / job.id
    weights = folder / "converted" / "model.safetensors"
    gain = "model.layers.0.input_layernorm.weight"
    tensors = load_file(weights)
    save_file(tensors | {gain: load_file(small_llama / "model.safetensors")[gain]}, weights)
    marks = Marks(folder)
    mark = marks.get(Stage.CONVERT)
    assert mark is not None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    marks.put(Stage.CONVERT, mark | {"files": mark["files"] | {"model.safetensors": digest}})
    service.retry(job.id)
    done = run(job)
    assert (done.state, done.verdict, done.result) == (State.REJECTED, "different", None)
    assert "not its source" in str(done.reason)
    assert not out.exists()
    assert service.evidence(job.id) is not None


def test_cancel_stops_a_running_job_and_leaves_nothing(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    follower = on_event(service, job, in_verify, lambda: service.cancel(job.id))
    done = run(job)
    follower.join()
    assert (done.state, done.reason) == (State.CANCELLED, "cancelled")
    assert not (tmp_path / "out").exists()
    assert not (settings.work / job.id).exists()
    assert children() == []


def test_a_killed_child_fails_the_job_alone_and_a_retry_goes_on(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    follower = on_event(service, job, in_verify, lambda: children()[0].send_signal(signal.SIGKILL))
    failed = run(job)
    follower.join()
    assert failed.state is State.FAILED
    assert "killed from outside" in str(failed.reason)
    service.retry(job.id)
    assert run(job).state is State.PUBLISHED
    assert stages_worked(service, job) == ["verify", "publish"]


def test_a_worker_that_stops_gives_the_job_back(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    stops = threading.Event()
    follower = on_event(service, job, in_verify, stops.set)
    assert run(job, stops).state is State.QUEUED
    follower.join()
    assert children() == []


def test_a_cancelled_job_is_not_run(
    forks: Forks, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    job = service.submit(str(small_llama), ["flashnorm"], str(tmp_path / "out"))
    service.cancel(job.id)
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        assert worker.this_job(job.id) is None
        assert worker.next_job("cpu") is None


def test_a_source_that_changed_since_is_refused(
    run: Runner, service: Service, settings: Settings, small_llama: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for path in small_llama.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    job = service.submit(str(source), ["flashnorm"], str(tmp_path / "out"))
    with (source / "config.json").open("a") as file:
        file.write("\n")
    done = run(job)
    assert done.state is State.FAILED
    assert "changed after the job was submitted" in str(done.reason)


def test_a_plan_that_fits_nowhere_fails_with_the_reason(
    run: Runner, service: Service, settings: Settings, tmp_path: Path
) -> None:
    config = OlmoConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = OlmoForCausalLM(config)  # its norms have no gains
    model.save_pretrained(tmp_path / "gainless")
    job = service.submit(str(tmp_path / "gainless"), ["flashnorm"], str(tmp_path / "out"))
    done = run(job)
    assert done.state is State.FAILED
    assert "flashnorm fits nowhere" in str(done.reason)
    assert len(str(done.reason).splitlines()) == 1


def test_a_full_disk_is_told_and_leaves_no_partial_output(
    forks: Forks, small_llama: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        plan: Plan = make_plan(read_checkpoint(small_llama), [parse_trick("flashnorm")])
        arguments = {"plan": plan.to_json(), "source": str(small_llama), "out": str(disk / "out")}
        with (
            ChildProcess(forks, tmp_path, lambda: False, 1) as child,
            pytest.raises(DiskFull, match="disk is full"),
        ):
            child.ask("convert", lambda unit, done, total: None, **arguments)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_reason_is_one_line_without_a_token() -> None:
    assert one_line("refused for hf_abcdefghij\nand more") == "refused for hf_***"
    assert one_line("") == "no reason given"
