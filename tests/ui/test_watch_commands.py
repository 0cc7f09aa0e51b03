"""`tricksmith watch` and the webhook's address, as a user and the Hub meet them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.api import Service
from service.settings import Settings
from tests.hub_models import small_llama
from tests.hub_server import HubServer
from ui.cli import main
from ui.webhook import add_webhook

Run = Callable[..., tuple[int, str, str]]

RULE = ("add", "--author", "forge", "--trick", "flashnorm")


@pytest.fixture
def run(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The command line in this process, on a data folder and a Hub of the test's own."""
    monkeypatch.setenv("TRICKSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REDIS_URL", raising=False)

    def call(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(args)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


def test_a_watchs_life(run: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.add_model("forge/new", small_llama(tmp_path / "new"))
    add = ("watch", "add", "--model", "forge/new", "--trick", "flashnorm", "--to", "smith", "--deny", "x/*")
    code, out, _ = run(*add, "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["kind"], made["deny"], made["revisions"]) == ("model", ["x/*"], True)
    assert made["id"] in run("watch", "list")[1]

    assert "forge/new: would be queued → smith/new-FlashNorm" in run("watch", "run", "--dry-run")[1]
    code, out, _ = run("watch", "run", made["id"], "--json")
    (decision,) = json.loads(out)[0]["decisions"]
    assert (decision["outcome"], decision["to"]) == ("queued", "smith/new-FlashNorm")
    assert f"job {decision['job']}" in run("watch", "history", made["id"])[1]

    assert "paused: by hand" in run("watch", "pause", made["id"])[1]
    assert run("watch", "run", made["id"])[0] == 2
    assert run("watch", "run")[1] == "no watches that are not paused\n"
    assert "paused" not in run("watch", "resume", made["id"])[1]
    assert "no longer watched" in run("watch", "remove", made["id"])[1]
    assert run("watch", "list")[1] == "no watches yet\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "the following arguments are required: ACTION"),
        (("add", "--trick", "flashnorm", "--to", "smith"), "one of the arguments --author --model"),
        (("add", "--author", "forge", "--to", "smith"), "required: --trick"),
        (("add", "--author", "forge", "--trick", "magic", "--to", "smith"), "magic"),
        ((*RULE, "--to", "smith/one"), "one place for many models"),
        (
            ("add", "--author", "a", "--trick", "flashnorm", "--to", "b", "--per-day", "0"),
            "is not a number from 1",
        ),
        (
            ("add", "--author", "a", "--trick", "flashnorm", "--to", "b", "--max-age", "nan"),
            "is not a number from 0",
        ),
        ((*RULE, "--to", "other"), "may not write to other; use one of: forge, smith"),
        (("remove", "nothing"), "there is no watch 'nothing'"),
        (("run", "nothing"), "there is no watch 'nothing'"),
        (("history", "nothing"), "there is no watch 'nothing'"),
    ],
)
def test_wrong_requests_are_one_line(run: Run, args: tuple[str, ...], message: str) -> None:
    code, out, err = run("watch", *args)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_the_webhooks_address(hub: HubServer, tmp_path: Path) -> None:
    secret = "0123456789abcdef"
    with Service(Settings(data=tmp_path / "data", webhook_secret=secret)) as service:
        receiver = service.webhook_receiver()
        assert receiver is not None
        app = FastAPI()
        add_webhook(app, receiver)
        client = TestClient(app)
        body = {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {"type": "model", "name": "a/b"},
        }
        assert client.post("/webhooks/hub", json=body).status_code == 401
        assert client.post("/webhooks/hub", json=body, headers={"X-Webhook-Secret": "no"}).status_code == 403
        right = {"X-Webhook-Secret": secret}
        assert client.post("/webhooks/hub", json=body, headers=right).json() == {"message": "taken"}
        assert client.post("/webhooks/hub", content=b"x" * 2_000_000, headers=right).status_code == 413
        assert client.get("/webhooks/hub", headers=right).status_code == 405
    with Service(Settings(data=tmp_path / "data")) as service:
        assert service.webhook_receiver() is None
    assert secret not in repr(Settings(data=tmp_path, webhook_secret=secret))
