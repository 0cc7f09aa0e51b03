"""What the security tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_models import small_llama as make_small_llama


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100 kB that transformers can load."""
    return make_small_llama(tmp_path_factory.mktemp("models") / "small-llama")
