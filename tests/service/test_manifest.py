"""The manifest: what it says, what it never says, and when two conversions are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.fetch import fetch
from service.manifest import (
    MANIFEST,
    build_manifest,
    check_files,
    digest,
    file_digests,
    parse_manifest,
    read_manifest,
)
from service.source import resolve
from tests.hub_models import convert_by_copy, write_model
from tests.hub_server import HubServer
from tricks import BadInput, Conversion, Plan, parse_trick


def test_it_names_source_recipe_tools_and_every_digest(tmp_path: Path) -> None:
    source = resolve(str(write_model(tmp_path / "tiny")))
    manifest = convert_by_copy(source, tmp_path / "out")

    assert read_manifest(tmp_path / "out") == manifest
    assert manifest["source"]["id"] == "tiny"
    assert manifest["recipe"] == ["flashnorm"]
    assert manifest["proof"] == 3e-15
    assert set(manifest["source"]["files"]) == {file.name for file in source.files}
    assert {"torch", "transformers", "safetensors", "huggingface_hub", "python", "platform"} <= set(
        manifest["versions"]
    )
    check_files(tmp_path / "out", manifest)


def test_no_path_of_the_machine_is_in_it(tmp_path: Path) -> None:
    convert_by_copy(resolve(str(write_model(tmp_path / "tiny"))), tmp_path / "out")
    text = (tmp_path / "out" / MANIFEST).read_text()
    assert str(tmp_path) not in text
    assert "/" not in "".join(json.loads(text)["source"]["files"])
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_of_a_hub_source_it_has_the_commit_and_digests(hub: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    fetched = fetch(source, tmp_path / "in")
    manifest = build_manifest(
        source,
        Plan("forge/tiny", "LlamaForCausalLM", (parse_trick("flashnorm"),), ()),
        Conversion({}, 0, 0),
        fetched,
    )
    assert manifest["source"]["commit"] == source.commit
    assert manifest["source"]["files"] == file_digests(folder, [file.name for file in source.files])


def test_the_digest_knows_the_same_conversion_whenever_it_was_made(tmp_path: Path) -> None:
    manifest = convert_by_copy(resolve(str(write_model(tmp_path / "tiny"))), tmp_path / "out")
    assert digest({**manifest, "created": "2000-01-01T00:00:00+00:00"}) == digest(manifest)
    assert digest(dict(reversed(manifest.items()))) == digest(manifest)
    assert digest({**manifest, "recipe": ["slim"]}) != digest(manifest)


def test_a_changed_or_missing_file_is_found(tmp_path: Path) -> None:
    manifest = convert_by_copy(resolve(str(write_model(tmp_path / "tiny"))), tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"tokenizer\.json is not the file that was converted"):
        check_files(tmp_path / "out", manifest)
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json is missing"):
        check_files(tmp_path / "out", manifest)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"schema": 1, "tool": {"name": "another"}, "files": {}}',
     b'{"schema": 1, "tool": {"name": "tricksmith"}}',
     b'{"schema": 1, "tool": {"name": "tricksmith"}, "files": {"../../etc/passwd": "' + b"0" * 64 + b'"}}',
     b'{"schema": 1, "tool": {"name": "tricksmith"}, "files": {"/etc/passwd": "' + b"0" * 64 + b'"}}'],
)  # fmt: skip
def test_what_is_no_manifest_of_ours(data: bytes) -> None:
    assert parse_manifest(data) is None
