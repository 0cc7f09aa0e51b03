"""Sources: found, pinned to a commit, planned from headers alone, and fetched no further than needed."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from service import hub as hub_client
from service.fetch import fetch
from service.headers import read_headers
from service.source import Source, needed_files, resolve
from tests.hub_models import write_model
from tests.hub_server import HubServer, User
from tricks import BadInput, Cancelled

WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SIDE = ["LICENSE", "chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


def test_a_hub_model_is_pinned_to_its_commit(hub: HubServer, folder: Path) -> None:
    repo = hub.add_model("forge/tiny", folder)
    first = repo.refs["main"]
    source = resolve("forge/tiny")
    repo.commit({}, "everything is gone")

    assert source.commit == first
    assert source.reference == f"forge/tiny@{first}"
    assert sorted(file.name for file in source.files) == sorted(
        [*WEIGHTS, *SIDE, "model.safetensors.index.json"]
    )
    assert source.size_bytes == sum((folder / file.name).stat().st_size for file in source.files)
    assert source.licence == "smith-licence"
    assert source.card["language"] == ["en", "de"]
    assert "model-index" not in source.card
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_a_revision_is_a_branch_a_pull_request_or_a_commit(hub: HubServer, folder: Path) -> None:
    repo = hub.add_model("forge/tiny", folder)
    commit = repo.refs["main"]
    repo.refs["refs/pr/3"] = commit
    hub.add_model("forge/tiny", {"config.json": b"{}"})

    assert resolve("forge/tiny@refs/pr/3").commit == commit
    assert resolve(f"forge/tiny@{commit}").commit == commit


def test_a_renamed_repo_goes_by_its_new_name(hub: HubServer, folder: Path) -> None:
    hub.add_model("forge/tiny", folder)
    hub.renamed["forge/old"] = "forge/tiny"
    assert resolve("forge/old").model == "forge/tiny"


def test_a_listing_without_sizes_is_completed(hub: HubServer, folder: Path) -> None:
    hub.add_model("forge/tiny", folder)
    full = resolve("forge/tiny")
    hub.bare_listings = True
    assert [(f.name, f.size) for f in resolve("forge/tiny").files] == [(f.name, f.size) for f in full.files]


def test_planning_downloads_no_weights(hub: HubServer, folder: Path) -> None:
    hub.add_model("forge/tiny", write_model(folder.parent / "wide", hidden=512))
    source = resolve("forge/tiny")
    checkpoint = read_headers(source)

    local = read_headers(resolve(str(folder.parent / "wide")))
    assert (checkpoint.config, checkpoint.tensors, checkpoint.files) == (
        local.config,
        local.tensors,
        local.files,
    )
    weights = sum(file.size for file in source.files if file.name in WEIGHTS)
    assert weights > 4_000_000
    assert hub.served(".safetensors") < weights / 4
    assert all(r.range for r in hub.requests if r.path.endswith(".safetensors"))


def test_a_long_header_is_read_whole(hub: HubServer, tmp_path: Path) -> None:
    hub.add_model("forge/deep", write_model(tmp_path / "deep", hidden=4, layers=160, shards=1))
    assert len(read_headers(resolve("forge/deep")).tensors) == 160 * 9 + 3


def test_fetch_brings_the_needed_files_and_nothing_else(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    seen: list[tuple[str, int, int]] = []
    out = fetch(source, tmp_path / "in", report=lambda *step: seen.append(step))

    got = sorted(path.name for path in out.iterdir() if path.is_file())
    assert got == sorted(file.name for file in source.files)
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in got)
    assert {r.user for r in hub.requests if r.path.startswith("/cdn/")} == {None}  # no token leaves the Hub
    assert seen[-1] == ("bytes", source.size_bytes, source.size_bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_fetch_goes_on_where_it_was_cancelled(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")

    def stop(unit: str, done: int, total: int) -> None:
        if done > total * 0.9:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fetch(source, tmp_path / "in", report=stop)
    kept = {path.name for path in (tmp_path / "in").iterdir() if path.is_file()}
    assert WEIGHTS[0] in kept
    assert WEIGHTS[1] not in kept
    hub.requests.clear()
    fetch(source, tmp_path / "in")
    assert hub.served(WEIGHTS[0]) == 0
    assert (tmp_path / "in" / WEIGHTS[1]).read_bytes() == (folder / WEIGHTS[1]).read_bytes()


def test_a_cut_download_is_taken_up_again(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    hub.fail(f"GET /cdn/.*{WEIGHTS[0]}", cut=70_000)
    out = fetch(resolve("forge/tiny"), tmp_path / "in")
    assert (out / WEIGHTS[0]).read_bytes() == (folder / WEIGHTS[0]).read_bytes()


def test_wrong_bytes_are_not_kept(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    hub.fail(f"GET /cdn/.*{WEIGHTS[0]}", flip=True, times=2)
    with pytest.raises(BadInput, match="other bytes than the Hub announced; try again"):
        fetch(resolve("forge/tiny"), tmp_path / "in")
    assert not (tmp_path / "in" / WEIGHTS[0]).exists()
    fetch(resolve("forge/tiny"), tmp_path / "in")


def test_a_full_disk_is_said_before_anything_is_fetched(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match=r"needs .* GB and the disk has .* GB free"):
        fetch(source, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_local_folder_is_used_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = resolve(str(folder))
    assert (source.model, source.commit, source.folder) == ("tiny", None, str(folder))
    assert source.licence == "smith-licence"
    assert fetch(source, tmp_path / "in") == folder
    assert Source.from_json(source.to_json()) == source
    (folder / "tokenizer.json").write_text('{"version": "2.0.0"}')
    assert resolve(str(folder)).key != source.key


def test_a_gated_model_needs_access(hub: HubServer, folder: Path) -> None:
    hub.add_model("other/gated", folder, gated=True)
    with pytest.raises(
        BadInput, match=r"gated and this token has no access; accept its terms at .*other/gated"
    ):
        resolve("other/gated")
    hub.users["hf_smith"].granted.add("other/gated")
    assert resolve("other/gated").gated


def test_a_private_model_needs_its_owners_token(hub: HubServer, folder: Path) -> None:
    hub.add_model("forge/secret", folder, private=True)
    hub.users["hf_other"] = User("other")
    assert resolve("forge/secret").private
    with pytest.raises(BadInput, match="not on the Hub, or is private"):
        resolve("forge/secret", token="hf_other")


def _pickles(hub: HubServer) -> None:
    hub.add_model("forge/x", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})


def _no_weights(hub: HubServer) -> None:
    hub.add_model("forge/x", {"config.json": b"{}", "adapter_model.safetensors": b"adapter"})


def _no_config(hub: HubServer) -> None:
    hub.add_model("forge/x", {"model.safetensors": b"weights"})


def _disabled(hub: HubServer) -> None:
    hub.add_model("forge/x", {"config.json": b"{}"}).disabled = True


def _unsafe(hub: HubServer) -> None:
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors": b""}).unsafe = ("model.safetensors",)


def _bad_index(hub: HubServer) -> None:
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors.index.json": b"[1]"})


def _tensor_twice(hub: HubServer) -> None:
    index = b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors.index.json": index})


def _index_outside(hub: HubServer) -> None:
    index = b'{"weight_map": {"a": "../x.safetensors"}}'
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors.index.json": index})


def _index_of_missing(hub: HubServer) -> None:
    index = b'{"weight_map": {"a": "x.safetensors"}}'
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors.index.json": index})


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (None, "forge/x is not on the Hub, or is private; check the id"),
        (_pickles, r"holds no safetensors \(only .bin\)"),
        (_no_weights, "neither model.safetensors nor"),
        (_no_config, "has no config.json"),
        (_disabled, "disabled on the Hub"),
        (_unsafe, "scanners call model.safetensors of forge/x unsafe"),
        (_bad_index, "is not a JSON object"),
        (_tensor_twice, "'a' stands twice"),
        (_index_outside, "outside the model's folder"),
        (_index_of_missing, "model.safetensors.index.json"),
    ],
)
def test_a_hub_model_that_will_not_do(hub: HubServer, prepare: object, message: str) -> None:
    if callable(prepare):
        prepare(hub)
    with pytest.raises(BadInput, match=message) as caught:
        read_headers(resolve("forge/x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 4, 8, 5_000, -1])
def test_a_truncated_shard_is_found_from_its_header(hub: HubServer, folder: Path, cut: int) -> None:
    path = folder / WEIGHTS[1]
    path.write_bytes(path.read_bytes()[:cut])
    hub.add_model("forge/x", folder)
    with pytest.raises(BadInput, match=f"{WEIGHTS[1]} of forge/x is truncated"):
        read_headers(resolve("forge/x"))


@pytest.mark.parametrize("model", ["forge/x@nowhere", "forge/x@0000000000000000000000000000000000000000"])
def test_a_missing_revision_is_named(hub: HubServer, folder: Path, model: str) -> None:
    hub.add_model("forge/x", folder)
    with pytest.raises(BadInput, match=r"forge/x has no revision '(nowhere|0+)'"):
        resolve(model)


@pytest.mark.parametrize(
    "model",
    ["", "  ", "./nowhere", "/nowhere/at/all", "a/b/c", "../up", "forge/tiny/", "forge/..", "f\u043erge/tiny",
     "forge//x", "forge/x y", "forge/x@", "forge/x@../main", "forge/x@a b", "for\nge/x", "-x/y", "https://huggingface.co/a/b"],
)  # fmt: skip
def test_what_is_neither_folder_nor_hub_id(hub: HubServer, model: str) -> None:
    with pytest.raises(BadInput) as caught:
        resolve(model)
    assert "\n" not in str(caught.value)
    assert hub.requests == []


def test_a_folder_without_config_and_a_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadInput, match=r"has no config.json"):
        resolve(str(tmp_path))
    with pytest.raises(BadInput, match="is a file; give the folder"):
        resolve(str(folder / "config.json"))


def test_an_unreachable_hub_is_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        hub_client.HubUnavailable, match=r"the Hub at http://127\.0\.0\.1:9 cannot be reached"
    ):
        resolve("forge/x")


@pytest.mark.parametrize(("status", "message"), [(500, "failed"), (429, "slow down"), (403, "may not")])
def test_a_failing_hub_is_one_line(hub: HubServer, status: int, message: str) -> None:
    hub.fail("GET /api/models", status=status, times=9, headers={"Retry-After": "100"})
    with pytest.raises(BadInput, match=message):
        resolve("forge/x")


def test_a_hub_that_talks_nonsense_is_one_line(hub: HubServer) -> None:
    hub.fail("GET /api/models", flip=True, times=9)
    hub.add_model("forge/x", {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(hub_client.HubUnavailable, match="gave no usable answer about forge/x"):
        resolve("forge/x")


def test_a_wrong_token_is_said_and_not_shown(hub: HubServer) -> None:
    with pytest.raises(BadInput, match="does not accept this token") as caught:
        resolve("forge/x", token="hf_leaked")
    assert "leaked" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "sub/config.json", "model.py", "tokenizer.py", "vocab.pkl",
     "pytorch_model.bin.index.json",
     "other.safetensors", "conversion.json", "evidence.json", "/etc/tokenizer.json"],
)  # fmt: skip
def test_files_that_stay_on_the_hub(name: str) -> None:
    assert needed_files([name, "model.safetensors"], None) == ["model.safetensors"]
