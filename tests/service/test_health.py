"""Metrics, health and readiness, logs, and the doctor: what an operator looks at."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from service.doctor import Level, examine
from service.health import Health, served
from service.jobs import JobStore, Stage, State
from service.lanes import lane
from service.logs import JsonFormatter, TextFormatter, job_in_logs
from service.metrics import exposition
from service.probe import main
from service.redis_server import running_redis
from service.registry import About, Registry
from service.settings import Settings
from tricks import BadInput

ABOUT = About("w1", "host", 1, ("cpu",), 2, "0", 0.0, running=1, gpus=2, gpus_busy=1, disk_free=10**12)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with running_redis(Settings(data=tmp_path)) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    store = JobStore(url, patience=0.1)
    yield store
    store.close()


def run_two_jobs(store: JobStore) -> None:
    for number, (state, more) in enumerate(
        [(State.PUBLISHED, {"verdict": "equivalent"}), (State.FAILED, {"reason": "no", "cause": "memory"})]
    ):
        source = {"model": "m", "size_bytes": 1000}
        job, _ = store.create(model="m", tricks=["flashnorm"], to=f"{number}", source=source, key=f"{number}")
        store.begin(job.id, f"w{number}", 30)
        store.stage(job.id, f"w{number}", Stage.CONVERT)
        store.stage(job.id, f"w{number}", Stage.VERIFY)
        store.finish(job.id, f"w{number}", state, **more)
    store.create(model="m", tricks=[], to="x", source={}, key="x", lane=lane(large=True))


def test_metrics_tell_what_happened(url: str, store: JobStore) -> None:
    run_two_jobs(store)
    registry = Registry(url)
    registry.say(ABOUT)
    text = exposition(store, registry).decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["tricksmith_jobs_submitted_total",] == 3
    assert found["tricksmith_jobs_total", "published"] == 1
    assert found["tricksmith_failures_total", "memory"] == 1
    assert found["tricksmith_verdicts_total", "equivalent"] == 1
    assert found["tricksmith_source_bytes_total",] == 1000
    assert found["tricksmith_jobs_waiting", "cpu", "large", "people"] == 1
    assert found["tricksmith_worker_gpus_busy", "host", "w1"] == 1
    assert found["tricksmith_stage_seconds_count", "convert"] == 2
    assert found["tricksmith_wait_seconds_bucket", "+Inf"] == 2
    registry.close()


def test_health_and_readiness_over_http(url: str, store: JobStore) -> None:
    registry = Registry(url)
    with served(Health(store, registry), 0, "127.0.0.1") as port:
        address = f"http://127.0.0.1:{port}"
        assert main(f"{address}/healthz") == main(f"{address}/readyz") == 0
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            assert b"tricksmith_workers 0.0" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/etc/passwd")
    registry.close()


def test_a_redis_that_is_away_makes_a_process_not_ready_but_healthy() -> None:
    gone = "redis://:hunter2@127.0.0.1:1/0"
    health = Health(JobStore(gone, patience=0.0), Registry(gone))
    assert health.answer("/healthz")[0] == 200
    status, _, body = health.answer("/readyz")
    assert (status, b"hunter2" in body) == (503, False)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("workers.run", logging.INFO, "", 0, message, (), None)


def test_log_lines_know_their_job_and_hold_no_secret() -> None:
    line = record("redis://:hunter2@host refused hf_abcdefghij")
    with job_in_logs("abc123"):
        told = json.loads(JsonFormatter().format(line))
        text = TextFormatter("%(job)s%(message)s").format(line)
    assert (told["job"], told["level"], told["logger"]) == ("abc123", "info", "workers.run")
    assert text.startswith("job abc123: ")
    for said in (told["message"], text):
        assert "hunter2" not in said
        assert "hf_abcdefghij" not in said
    assert "job" not in json.loads(JsonFormatter().format(line))


def test_the_doctor_finds_a_redis_that_may_lose_jobs(url: str, tmp_path: Path) -> None:
    client = redis.Redis.from_url(url)
    client.config_set("appendonly", "no")
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.close()
    found = {finding.what: finding for finding in examine(Settings(data=tmp_path / "other", redis_url=url))}
    assert found["Redis persistence"].level is Level.BAD
    assert "appendonly yes" in found["Redis persistence"].change
    assert found["Redis eviction"].level is Level.BAD
    assert found["workers"].level is Level.BAD
    assert "TRICKSMITH_TOKEN_KEY" in found["key of tokens"].change


def test_the_doctor_is_content_with_a_good_deployment(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, cache=0)
    with running_redis(settings) as url:
        registry = Registry(url)
        registry.say(ABOUT)
        bad = [finding for finding in examine(settings) if finding.level is Level.BAD]
        registry.close()
    assert [finding for finding in bad if finding.what not in ("Hub", "disk")] == []


def test_the_doctor_asks_for_a_password_on_a_far_redis_and_tells_none(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, redis_url="redis://:hunter2@127.0.0.1:1/0")
    said = " ".join(f"{finding.text} {finding.change}" for finding in examine(settings))
    assert "does not answer" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TRICKSMITH_LEASE", "soon", "TRICKSMITH_LEASE is 'soon'; give whole seconds"),
        ("TRICKSMITH_LOG", "jsn", "TRICKSMITH_LOG is 'jsn'; write text or json"),
        ("TRICKSMITH_MEMORY", "lots", "TRICKSMITH_MEMORY is 'lots'; give bytes"),
        ("TRICKSMITH_TOKEN_KEY", "short", "give 64 hex digits"),
        ("REDIS_PASSWORD_FILE", "/nowhere", "REDIS_PASSWORD_FILE cannot be read"),
        ("TRICKSMITH_WEBHOOK_SECRET_FILE", "/nowhere", "TRICKSMITH_WEBHOOK_SECRET_FILE cannot be read"),
    ],
)
def test_a_variable_that_says_nothing_sensible_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Settings.from_env({"REDIS_URL": "redis://h", name: value})


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    key, empty = tmp_path / "key", tmp_path / "empty"
    key.write_text("0f" * 32 + "\n")
    empty.write_text("")
    env = {"TRICKSMITH_TOKEN_KEY_FILE": str(key), "TRICKSMITH_WEBHOOK_SECRET_FILE": str(empty)}
    settings = Settings.from_env(env)
    assert (settings.token_key, settings.webhook_secret) == ("0f" * 32, None)
    assert "0f0f" not in repr(settings)
