"""What is known before any weight is downloaded."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from service.api import Service
from service.settings import Settings
from tests.hub_server import HubServer
from ui.cli import main


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(Settings(data=tmp_path / "data"))


def test_needs_and_plan_are_told_without_a_weight(
    hub: HubServer, service: Service, small_llama: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    seen = service.preflight("forge/new", ["flashnorm"])
    assert seen.plan.fits
    assert seen.disk == 2 * seen.download > 0
    assert seen.memory > 0
    assert seen.converted is None
    assert seen.warnings == ("it states no licence: ask its owner before publishing",)
    assert all(r.range for r in hub.requests if r.path.endswith(".safetensors"))


def test_what_speaks_against_it_is_said(hub: HubServer, service: Service, small_llama: Path) -> None:
    files = {path.name: path.read_bytes() for path in small_llama.iterdir()}
    card = b"---\nlicense: cc-by-nc-nd-4.0\n---\n"
    hub.add_model("forge/new", files | {"README.md": card}, gated=True)
    base = b"---\nbase_model: forge/new\ntags: [FlashNorm]\n---\n"
    hub.add_model("other/done", {"README.md": base})
    hub.add_model("other/finetune", {"README.md": b"---\nbase_model: forge/new\n---\n"})
    seen = service.preflight("forge/new", ["flashnorm"])
    assert seen.converted == "other/done"
    assert [text.split(":")[0] for text in seen.warnings] == [
        "its licence (cc-by-nc-nd-4.0) forbids derivatives",
        "it is gated",
        "other/done is this conversion already",
    ]


def test_too_little_disk_is_said(
    hub: HubServer, service: Service, small_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("forge/new", small_llama)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    assert (
        "GB of disk, and 0.00 GB are free here" in service.preflight("forge/new", ["flashnorm"]).warnings[-1]
    )


def test_a_search_that_fails_does_not_fail_the_rest(
    hub: HubServer, service: Service, small_llama: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    hub.fail("GET /api/models$", status=429, headers={"Retry-After": "999"}, times=9)
    seen = service.preflight("forge/new", ["flashnorm"])
    assert seen.plan.fits
    assert "whether somebody converted it already is not known" in seen.warnings[-1]


def test_the_plan_command_says_it(
    hub: HubServer, small_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("forge/new", small_llama)
    assert main(["plan", "forge/new", "--trick", "flashnorm"]) == 0
    said = capsys.readouterr().out
    assert "licence not stated" in said
    assert "GB to download; disk" in said
    assert main(["plan", "forge/new", "--trick", "flashnorm", "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["preflight"]["source"]["commit"]
        == hub.repo("forge/new").refs["main"]
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["plan", str(small_llama), "--trick", "flashnorm"]) == 0  # a folder needs no network
