"""`tricksmith space deploy` by hand: whatever is wrong, one line says so, and nothing is made."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi

from tests.hub_server import HubServer
from ui.cli import main

SPACE = "smith/tricksmith"


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr."""
    capsys.readouterr()
    assert main(["space", "deploy", *args]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "Traceback" not in told.err
    assert len(told.err.strip().splitlines()) == 1, told.err
    return told.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tricksmith"], "NAMESPACE/NAME"),
        (["smith/<script>"], "NAMESPACE/NAME"),
        (["file:///etc/passwd"], "NAMESPACE/NAME"),
        (["smith/" + "x" * 100_000], "NAMESPACE/NAME"),
        (["other/tricksmith"], "may not write to other"),
        ([SPACE, "--hardware", "gpu-of-dreams"], "no hardware of the Hub"),
        ([SPACE, "--storage", "s3"], "no storage"),
        ([SPACE, "--remote-redis"], "REDIS_URL"),
        ([SPACE, "--dry-run", "/"], "exists"),
        ([SPACE, "--dry-run", "/proc/none/here"], "/proc/none"),
    ],
)
def test_a_wrong_word(
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    says: str,
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    line = refusal(capsys, *args)
    assert says in line
    assert len(line) < 600
    assert not hub.repos
    assert not hub.buckets


def test_no_token_a_wrong_one_and_no_network(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    assert "token" in refusal(capsys, SPACE)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in refusal(capsys, SPACE)
    monkeypatch.setenv("HF_TOKEN", "hf_smith")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refusal(capsys, SPACE)
    assert "Hub" in line
    assert "hf_smith" not in line
    assert not hub.repos


def test_a_strangers_space_is_left_alone_and_ours_is_deployed_again(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api = HfApi(hub.endpoint, "hf_smith")
    api.create_repo("smith/mine", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="app.py", repo_id="smith/mine", repo_type="space")
    assert "did not make" in refusal(capsys, "smith/mine")
    assert hub.repo("spaces/smith/mine").files["app.py"] == b"mine"

    assert main(["space", "deploy", SPACE]) == 0
    assert f"/spaces/{SPACE}" in capsys.readouterr().out
    assert main(["space", "deploy", SPACE]) == 0
    assert "nothing to change" in capsys.readouterr().out
