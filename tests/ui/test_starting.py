"""While workers start, a submit says that they do, and its job is theirs."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from service.doctor import Level, examine
from service.redis_server import running_redis
from service.registry import Registry
from service.settings import Settings
from tests.hub_models import small_llama
from ui.cli import main


def test_a_submit_while_workers_start_is_taken_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_llama(tmp_path / "model")
    command = ["submit", str(model), "--trick", "flashnorm", "--to", str(tmp_path / "out"), "--json"]
    with running_redis(Settings(data=tmp_path / "data")) as url:
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("TRICKSMITH_DATA", str(tmp_path / "data"))
        assert main(command) == 2
        assert "no worker is running" in capsys.readouterr().err
        with closing(Registry(url)) as registry:
            registry.announce()
            told = {found.what: found for found in examine(Settings(tmp_path / "data", redis_url=url))}
        assert (told["workers"].level, told["workers"].text) == (Level.NOTE, "the first one is starting")
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert "the workers are starting; the job waits for them" in err
        assert json.loads(out)["state"] == "queued"
