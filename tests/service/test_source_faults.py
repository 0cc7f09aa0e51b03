"""Sources through a bad day of the Hub: each trouble is one line, and wrong bytes never stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

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


def test_a_date_to_wait_for_is_read_too(hub: HubServer, folder: Path) -> None:
    hub.add_model("forge/tiny", folder)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    hub.fail("GET /api/models/", status=429, headers={"Retry-After": soon})
    began = time.monotonic()
    assert resolve("forge/tiny").commit
    assert 0.5 < time.monotonic() - began < 5


@pytest.mark.parametrize("tenth", range(0, 10, 3))
def test_a_download_cut_anywhere_goes_on(hub: HubServer, folder: Path, tmp_path: Path, tenth: int) -> None:
    hub.add_model("forge/tiny", folder)
    size = (folder / FIRST).stat().st_size
    hub.fail(f"GET /cdn/.*{FIRST}", cut=size * tenth // 10)
    out = fetch(resolve("forge/tiny"), tmp_path / "in")
    assert (out / FIRST).read_bytes() == (folder / FIRST).read_bytes()


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


PUBLISH_WITH_XET = """
import json, sys
from pathlib import Path
from service.publish import publish
from service.source import resolve
from tests.hub_models import EQUIVALENT, convert_by_copy
source = resolve(sys.argv[1])
convert_by_copy(source, Path(sys.argv[2]))
print(publish(Path(sys.argv[2]), "smith/tiny", evidence=EQUIVALENT, source=source))
"""


def test_with_the_xet_client_switched_on_too(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A Hub without Xet storage is served by LFS, whatever the client could do."""
    env = os.environ | {"HF_HUB_DISABLE_XET": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PUBLISH_WITH_XET, str(folder), str(tmp_path / "work")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not hub.repo("smith/tiny").private
    assert json.loads(hub.repo("smith/tiny").files["conversion.json"])["source"]["id"] == "tiny"
