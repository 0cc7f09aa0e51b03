"""The fixture `hub`: a Hub of our own, with the environment pointing the real client at it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A fresh, empty Hub; the caller is `smith` (of the organisation `forge`) with a token that may write."""
    home: Path = tmp_path_factory.mktemp("hf-home")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_smith")
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server
