"""What the service's tests share: a data folder and a running service, and a small real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.api import Service
from service.redis_server import running_redis
from service.settings import Settings
from tests.hub_models import small_llama as make_small_llama


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100 kB that transformers can load."""
    return make_small_llama(tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="session")
def redis_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one embedded Redis; each test that uses it begins by emptying it."""
    with running_redis(Settings(data=tmp_path_factory.mktemp("redis"))) as url:
        yield url


@pytest.fixture
def empty_redis(redis_of_all: str) -> str:
    """The address of a Redis that holds nothing."""
    with redis.Redis.from_url(redis_of_all) as client:
        client.flushall()
    return redis_of_all


@pytest.fixture
def running(tmp_path: Path, empty_redis: str) -> Iterator[Service]:
    """The service on an empty Redis; no worker runs."""
    with Service(Settings(data=tmp_path / "data", redis_url=empty_redis)) as service:
        yield service
