"""A small real model and a running Redis for the tests of workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from service.api import Service
from service.jobs import Job
from service.redis_server import running_redis
from service.settings import Settings
from tests.workers.running import Runner
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100 kB with gains that are not one, and without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("models") / "small-llama"
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One fork server for all tests, started with a token around it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_abcdefgh")
        patch.setenv("OMP_NUM_THREADS", "1")
        with Forks(tmp_path_factory.mktemp("forks") / "log") as forks:
            yield forks


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children use one core: threads that wait for each other cost small models most of their time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data folder of this test's own."""
    return Settings(data=tmp_path / "data", grace=1.0)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """The service on an embedded Redis."""
    with Service(settings) as service:
        yield service


@pytest.fixture
def run(settings: Settings, forks: Forks) -> Runner:
    """Run a job here, as a worker does, and return it as it is then."""

    def run(job: Job, stops: threading.Event | None = None) -> Job:
        with running_redis(settings) as url, Worker(url, settings, stops=stops, forks=forks) as worker:
            attempt = worker.this_job(job.id)
            assert attempt is not None
            done = run_job(attempt, worker)
        assert done is not None
        return done

    return run
