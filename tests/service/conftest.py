"""What the service's tests share: a data folder and a running service, and a small real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api import Service
from service.settings import Settings
from tests.hub_models import small_llama as make_small_llama


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100 kB that transformers can load."""
    return make_small_llama(tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    """The service on an embedded Redis of this test's own; no worker runs."""
    with Service(Settings(data=tmp_path / "data")) as service:
        yield service
