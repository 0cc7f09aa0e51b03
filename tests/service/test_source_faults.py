"""Sources through a bad day of the Hub: each trouble is one line, and wrong bytes never stay."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from service.fetch import fetch
from service.headers import read_headers
from service.hub import HubUnavailable
from service.source import resolve
from tests.hub_models import write_model
from tests.hub_server import HubServer, User
from tricks import BadInput

FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize(
    ("model", "token", "said"),
    [
        ("forge/nowhere", "hf_smith", "forge/nowhere is not on the Hub, or is private"),
        ("forge/nowhere", None, "forge/nowhere is not on the Hub, or is private"),
        ("other/secret", "hf_smith", "other/secret is not on the Hub, or is private"),
        ("other/gated", "hf_smith", "other/gated is gated and this token has no access; accept its terms at"),
        ("other/gated", None, "other/gated is gated and this token has no access"),
        ("other/open@v9", "hf_smith", "other/open (has no|or its) revision 'v9'"),
        ("other/open", "hf_wrong", "the Hub does not accept this token for other/open"),
        ("other/disabled", "hf_smith", "other/disabled is disabled|this token may not do that"),
    ],
)
def test_a_hub_that_says_no(
    hub: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: bool,
    model: str,
    token: str | None,
    said: str,
) -> None:
    """Whether the Hub names its errors, or tells them by the status alone."""
    hub.error_codes = codes
    hub.add_model("other/open", folder)
    hub.add_model("other/secret", folder, private=True)
    hub.add_model("other/gated", folder, gated=True)
    hub.add_model("other/disabled", folder).disabled = True
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match=said) as caught:
        resolve(model, token)
    assert "\n" not in str(caught.value)


def test_access_that_is_lost_between_resolve_and_fetch(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.users["hf_guest"] = User("guest", granted={"other/gated"})
    hub.add_model("other/gated", folder, gated=True)
    source = resolve("other/gated", "hf_guest")
    hub.users["hf_guest"].granted.clear()
    with pytest.raises(BadInput, match="other/gated is gated and this token has no access"):
        fetch(source, tmp_path / "in", "hf_guest")


def test_a_refusal_without_a_code_is_no_absence(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    hub.fail("HEAD .*/config.json", status=403)
    with pytest.raises(BadInput, match="this token may not do that with forge/tiny"):
        fetch(source, tmp_path / "in")


def test_a_repo_that_moves_on_is_read_at_the_commit_that_was_promised(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    hub.add_model("forge/tiny", write_model(tmp_path / "other", seed=1))
    assert read_headers(source).tensors
    out = fetch(source, tmp_path / "in")
    assert (out / FIRST).read_bytes() == (folder / FIRST).read_bytes()


def test_a_repo_that_is_renamed_meanwhile_is_read_under_its_new_name(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    hub.repos["forge/large"] = moved = hub.repos.pop("forge/tiny")
    moved.id = "forge/large"
    hub.renamed["forge/tiny"] = "forge/large"
    assert read_headers(source).tensors
    assert (fetch(source, tmp_path / "in") / FIRST).read_bytes() == (folder / FIRST).read_bytes()
    assert resolve("forge/tiny").model == "forge/large"


def test_a_commit_that_is_gone_is_said(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    repo = hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    repo.commits.clear()  # its history was written anew
    hub.add_model("forge/tiny", {"config.json": b"{}"})
    with pytest.raises(BadInput, match="forge/tiny has no revision"):
        fetch(source, tmp_path / "in")


def test_wrong_bytes_are_fetched_once_more(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    hub.fail(f"GET .*/{FIRST}", flip=True)
    seen: list[int] = []
    out = fetch(resolve("forge/tiny"), tmp_path / "in", report=lambda unit, done, total: seen.append(done))
    assert (out / FIRST).read_bytes() == (folder / FIRST).read_bytes()
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", [FIRST, "config.json", "tokenizer.json"])
def test_a_file_that_changed_under_its_name_does_not_stay(
    hub: HubServer, folder: Path, tmp_path: Path, name: str
) -> None:
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    hub.fail(f"GET .*/{name}", flip=True, times=2)
    with pytest.raises(HubUnavailable, match=f"{name} arrived with other bytes than the Hub announced"):
        fetch(source, tmp_path / "in")
    assert not (tmp_path / "in" / name).exists()
    assert (fetch(source, tmp_path / "in") / name).read_bytes() == (folder / name).read_bytes()


def test_a_stale_etag_does_not_keep_old_bytes(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    hub.fail("(HEAD|GET) .*/tokenizer.json", etag='"0000000000000000000000000000000000000000"', times=2)
    out = fetch(resolve("forge/tiny"), tmp_path / "in")
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_wave_of_429_is_waited_out(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    for pattern in ("GET /api/models/", "HEAD .*/resolve/", "GET .*/resolve/", "GET /cdn/"):
        hub.fail(pattern, status=429, headers={"Retry-After": "0"}, times=3)
    hub.fail("GET /api/models/", status=429, headers={"RateLimit": '"api";r=0;t=1'})
    hub.fail("GET /cdn/", status=503, headers={"Retry-After": "0"}, times=2)
    source = resolve("forge/tiny")
    assert read_headers(source).tensors
    assert sorted(p.name for p in fetch(source, tmp_path / "in").iterdir() if p.is_file()) == sorted(
        file.name for file in source.files
    )


@pytest.mark.parametrize("form", ["seconds", "part of a second", "date"])
def test_how_long_to_wait_is_read_in_each_form(hub: HubServer, folder: Path, form: str) -> None:
    hub.add_model("forge/tiny", folder)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    said = {"seconds": "60", "part of a second": "59.5", "date": date}[form]
    hub.fail("GET /api/models/", status=429, headers={"Retry-After": said}, times=9)
    with pytest.raises(HubUnavailable, match=r"try again in (5\d|60) s") as caught:
        resolve("forge/tiny")
    assert caught.value.wait is not None
    assert 50 < caught.value.wait <= 60


def test_a_download_cut_at_any_tenth_goes_on(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """All ten at a time: after a cut the client itself waits for a second."""
    size = (folder / FIRST).stat().st_size

    def cut(tenth: int) -> bytes:
        hub.add_model(f"forge/tiny{tenth}", folder)
        hub.fail(f"GET /forge/tiny{tenth}/.*{FIRST}", cut=size * tenth // 10)
        source = resolve(f"forge/tiny{tenth}")
        return (fetch(source, tmp_path / str(tenth)) / FIRST).read_bytes()

    hub.redirects = False  # so that a request for bytes names its repo
    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(cut, range(10))) == {(folder / FIRST).read_bytes()}
    cuts = [r for r in hub.requests if r.method == "GET" and FIRST in r.path and r.sent < size]
    assert len({r.path.split("/")[2] for r in cuts}) == 10


def test_the_licence_is_read_from_the_tags_where_there_is_no_card(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    hub.add_model("forge/tiny", folder)
    assert resolve("forge/tiny").licence == "apache-2.0"


@pytest.mark.parametrize(
    "name", ["gated/\uff4dodel", "forge/ti\u0301ny", "forge/tiny\u200b", "forge/..%2f", "CON/../x"]
)
def test_names_that_look_like_others_are_refused_unasked(hub: HubServer, name: str) -> None:
    with pytest.raises(BadInput):
        resolve(name)
    assert hub.requests == []


def test_a_hub_that_lists_files_by_the_tree_alone(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_model("forge/tiny", folder)
    expected = resolve("forge/tiny")
    hub.siblings = False
    assert resolve("forge/tiny") == expected


def test_a_hub_that_serves_large_files_itself(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.redirects = False
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    assert read_headers(source).tensors
    assert (fetch(source, tmp_path / "in") / FIRST).read_bytes() == (folder / FIRST).read_bytes()


def test_the_line_about_a_control_character_says_so() -> None:
    with pytest.raises(BadInput, match="holds a control character"):
        resolve("for\nge/x")


def test_with_the_xet_client_switched_on_too(hub: HubServer) -> None:
    """A Hub without Xet storage is served by LFS, whatever the client could do: here, in every test."""
    assert importlib.util.find_spec("hf_xet") is not None
    assert not constants.HF_HUB_DISABLE_XET
