"""A conversion tells what was done, can be made again bit for bit, and knows what it took the place of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.api import Service
from service.inspection import inspect
from service.manifest import digest, read_manifest
from service.publish import publish
from service.settings import Settings
from service.source import resolve
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer
from tricks import BadInput
from ui.cli import main


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(Settings(data=tmp_path / "data"))


def test_a_conversion_of_a_hub_model_is_made_again(
    hub: HubServer, service: Service, small_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_model("forge/small", small_llama)
    out = tmp_path / "out"
    service.convert("forge/small", out, ["flashnorm"])
    assert service.reproduce(str(out)).same

    hub.add_model("smith/made", out)
    hub.add_model("forge/small", {"config.json": b"{}"})  # the source moved on; its commit did not
    found = service.inspect("smith/made")
    assert found.commit == hub.repo("smith/made").refs["main"]
    assert found.digest == digest(found.manifest)
    assert main(["inspect", "smith/made"]) == 0
    said = capsys.readouterr().out
    assert "flashnorm of forge/small" in said
    assert found.manifest["source"]["commit"] in said
    assert "it was not compared with its source" in said
    assert main(["reproduce", "smith/made", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_a_difference_is_named(service: Service, small_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    service.convert(str(small_llama), out, ["flashnorm"])
    with pytest.raises(BadInput, match="was made from a local folder; give its source with --source"):
        service.reproduce(str(out))
    manifest = json.loads((out / "conversion.json").read_text())
    manifest["files"]["model.safetensors"] = "0" * 64
    manifest["versions"]["torch"] = "1.0"
    (out / "conversion.json").write_text(json.dumps(manifest))
    made = service.reproduce(str(out), str(small_llama))
    assert (made.same, made.differing) == (False, ("model.safetensors",))
    assert made.versions["torch"][0] == "1.0"
    manifest["source"]["files"]["config.json"] = "0" * 64
    (out / "conversion.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"config\.json of .* is not the file that was converted"):
        service.reproduce(str(out), str(small_llama))


def test_what_tricksmith_did_not_make_is_not_inspected(hub: HubServer, small_llama: Path) -> None:
    hub.add_model("forge/small", small_llama)
    for where in (str(small_llama), "forge/small"):
        with pytest.raises(BadInput, match=r"has no conversion\.json of Tricksmith"):
            inspect(where)
    with pytest.raises(BadInput, match="is not on the Hub"):
        inspect("forge/nowhere")
    with pytest.raises(BadInput, match="neither a folder nor a Hub id"):
        inspect("../x/y")


@pytest.mark.parametrize("to", ["folder", "smith/tiny"])
def test_a_later_conversion_names_the_former(hub: HubServer, tmp_path: Path, to: str) -> None:
    to = str(tmp_path / "published") if to == "folder" else to
    marks = []
    for seed in (0, 1):
        source = resolve(str(write_model(tmp_path / str(seed) / "tiny", seed=seed)))
        work = tmp_path / f"work{seed}"
        convert_by_copy(source, work)
        publish(work, to, evidence=EQUIVALENT, source=source)
        manifest = read_manifest(work)
        assert manifest is not None
        marks.append(digest(manifest))
        publish(work, to, evidence=EQUIVALENT, source=source)  # again: nothing changes
    found = inspect(to)
    assert found.digest == marks[1]
    assert found.manifest["follows"]["manifest"] == marks[0]
