"""The model that the faces are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

_TINY = Path(__file__).resolve().parents[2] / "models" / "tiny-llama"


@pytest.fixture(scope="session")
def model() -> Path:
    """The trained model of the repo."""
    return _TINY
