"""Publishing through a bad day of the Hub: cut, limited, full, changed meanwhile; nothing half is seen."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service import hub as client
from service.publish import check_destination, publish
from service.source import Source, resolve
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer, User
from tricks import BadInput, Cancelled, TricksmithError


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return resolve(str(write_model(tmp_path / "tiny", shards=4)))


@pytest.fixture
def made(source: Source, tmp_path: Path) -> Path:
    convert_by_copy(source, tmp_path / "work")
    return tmp_path / "work"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_published(hub: HubServer, made: Path, to: str = "smith/tiny") -> None:
    """The repo is public, and holds in one commit exactly what was made."""
    repo = hub.repo(to)
    assert not repo.private
    assert [commit.title.split(" ")[0] for commit in repo.commits] == ["initial", "flashnorm"]
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == contents(made)


def seen_by_others(hub: HubServer, to: str = "smith/tiny") -> dict[str, bytes]:
    """What a stranger finds at the destination."""
    repo = hub.repos.get(to)
    return {} if repo is None or repo.private else repo.files


@pytest.mark.parametrize("tenth", range(10))
def test_an_upload_cut_at_any_tenth_goes_on(hub: HubServer, source: Source, made: Path, tenth: int) -> None:
    """The worker dies (here: is cancelled) after so much of the way there; a second one finishes."""
    total = sum(len(data) for data in contents(made).values())

    def stop(unit: str, done: int, of: int) -> None:
        if done > total * tenth / 10:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source, report=stop)
    assert seen_by_others(hub) == {}
    arrived = set(hub.objects)
    hub.requests.clear()
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    sent_again = {r.path.rsplit("/", 1)[-1] for r in hub.requests if r.method == "PUT" and "/lfs/" in r.path}
    assert not sent_again & arrived
    assert_published(hub, made)


def test_a_connection_cut_at_any_tenth_of_a_file_is_taken_up(hub: HubServer, tmp_path: Path) -> None:
    """All ten at a time: after a cut the client itself waits for a second."""

    def cut(tenth: int) -> None:
        source = resolve(str(write_model(tmp_path / f"m{tenth}", hidden=32, shards=1, seed=tenth)))
        convert_by_copy(source, made := tmp_path / f"work{tenth}" / "made")
        data = (made / "model.safetensors").read_bytes()
        hub.fail(f"PUT /lfs/{hashlib.sha256(data).hexdigest()}", cut_in=len(data) * tenth // 10)
        publish(made, f"smith/m{tenth}", evidence=EQUIVALENT, source=source)
        assert_published(hub, made, f"smith/m{tenth}")

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(cut, range(10)))
    assert not any(fault.times for fault in hub.faults)


def test_large_files_go_up_in_parts(hub: HubServer, source: Source, made: Path) -> None:
    hub.part_size = 50_000
    seen: list[int] = []
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source, report=lambda u, d, t: seen.append(d))
    assert hub.calls(r"PUT /lfs/\w+/2$") >= 4
    assert_published(hub, made)
    there = [b - a for a, b in itertools.pairwise(seen) if b <= seen[-1] / 2]
    assert max(there) <= 1 << 16  # told within files, not from one file to the next
    assert seen == sorted(seen)


def test_a_wave_of_429_is_waited_out_as_asked(hub: HubServer, source: Source, made: Path) -> None:
    for pattern in (
        "whoami",
        "repos/create",
        "preupload",
        "PUT /lfs/",
        "commit/main",
        "settings",
        "GET /cdn/",
    ):
        hub.fail(pattern, status=429, headers={"Retry-After": "0"}, times=3)
    hub.fail("objects/batch", status=429, headers={"Retry-After": "0.2"})
    began = time.monotonic()
    assert check_destination("smith/tiny") == "smith/tiny"
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert time.monotonic() - began >= 0.2
    assert_published(hub, made)


def test_a_hub_with_a_rate_limit_is_obeyed(hub: HubServer, source: Source, made: Path) -> None:
    hub.rate = (30, 0.2)
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert_published(hub, made)


def test_a_wait_can_be_cancelled(hub: HubServer, source: Source, made: Path) -> None:
    hub.fail("commit/main", status=429, headers={"Retry-After": "600"}, times=99)
    stop = threading.Event()

    def report(unit: str, done: int, total: int) -> None:
        if hub.calls("commit/main"):
            stop.set()
        if stop.is_set():
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source, report=report)
    assert seen_by_others(hub) == {}


@pytest.mark.parametrize("where", ["repos/create", "commit/main", "settings"])
def test_an_answer_that_was_lost_is_not_done_twice(
    hub: HubServer, source: Source, made: Path, where: str
) -> None:
    hub.fail(where, lost=True)
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert_published(hub, made)


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(
    hub: HubServer, source: Source, made: Path
) -> None:
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    hub.fail("commit/main", lost=True)
    address = publish(made, "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    assert address.endswith("/other/tiny/discussions/1")
    assert len(hub.repo("other/tiny").prs) == 1


def test_bytes_that_do_not_come_back_as_sent_are_never_seen(
    hub: HubServer, source: Source, made: Path
) -> None:
    hub.fail("GET /cdn/", flip=True)
    with pytest.raises(TricksmithError, match="did not arrive at smith/tiny as it was sent"):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert seen_by_others(hub) == {}
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)  # it was the way back
    assert_published(hub, made)


@pytest.fixture
def next_one(source: Source, tmp_path: Path) -> tuple[Source, Path]:
    """A later conversion of the same model, with other weights."""
    other = resolve(str(write_model(tmp_path / "later" / "tiny", shards=1, seed=1)))
    convert_by_copy(other, tmp_path / "work2")
    return other, tmp_path / "work2"


def test_a_later_conversion_is_read_back_before_main_moves(
    hub: HubServer, source: Source, made: Path, next_one: tuple[Source, Path]
) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    later, folder = next_one
    hub.fail("GET /cdn/", flip=True)
    with pytest.raises(TricksmithError, match="did not arrive"):
        publish(folder, "smith/tiny", evidence=EQUIVALENT, source=later)
    files = seen_by_others(hub)
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == contents(made)
    publish(folder, "smith/tiny", evidence=EQUIVALENT, source=later)
    files = seen_by_others(hub)
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == contents(folder)
    assert list(hub.repo("smith/tiny").refs) == ["main"]


def test_a_hub_without_branches_gets_the_commit_at_once(
    hub: HubServer, source: Source, made: Path, next_one: tuple[Source, Path]
) -> None:
    hub.branches = False
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    later, folder = next_one
    publish(folder, "smith/tiny", evidence=EQUIVALENT, source=later)
    assert hub.repo("smith/tiny").commits[-1].title.startswith("flashnorm of tiny")
    assert len(hub.repo("smith/tiny").commits) == 3


def test_unchanged_files_are_not_sent_twice(
    hub: HubServer, source: Source, made: Path, next_one: tuple[Source, Path]
) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    hub.requests.clear()
    publish(made, "smith/again", evidence=EQUIVALENT, source=source)
    assert hub.calls("PUT /lfs/") == 0


def test_what_a_repo_holds_already_is_not_sent_to_it_again(
    hub: HubServer, source: Source, made: Path, tmp_path: Path
) -> None:
    """Also where the Hub would take it a second time: of four shards and the rest, one shard changed."""
    hub.dedupes = False
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    changed = Path(source.folder or "") / source.weights[2]
    changed.write_bytes(changed.read_bytes()[:-2] + b"\1\1")
    convert_by_copy(source, tmp_path / "work2")
    hub.requests.clear()
    seen: list[tuple[int, int, int]] = []

    def report(unit: str, done: int, total: int) -> None:
        seen.append((done, total, hub.calls("POST .*/commit/main")))

    publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=source, report=report)
    assert (seen[-1][0], 0) in {(total, commits) for done, total, commits in seen if done == total}
    sent = {r.path.rsplit("/", 1)[-1] for r in hub.requests if r.method == "PUT" and "/lfs/" in r.path}
    assert sent == {hashlib.sha256(changed.read_bytes()).hexdigest()}
    files = hub.repo("smith/tiny").files
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == contents(
        tmp_path / "work2"
    )


def test_another_models_conversion_is_not_written_over(
    hub: HubServer, source: Source, made: Path, tmp_path: Path
) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    other = resolve(str(write_model(tmp_path / "unlike")))
    convert_by_copy(other, tmp_path / "work3")
    with pytest.raises(BadInput, match="holds the conversion of tiny, not of unlike; choose another name"):
        publish(tmp_path / "work3", "smith/tiny", evidence=EQUIVALENT, source=other)
    assert_published(hub, made)


def test_a_full_account_is_said(hub: HubServer, source: Source, made: Path) -> None:
    hub.quota = 1000
    with pytest.raises(BadInput, match="storage limit reached; free storage, or go elsewhere"):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert seen_by_others(hub) == {}


@pytest.mark.parametrize(("status", "said"), [(402, "paid plan"), (403, "may not do that"), (413, "no room")])
def test_a_refused_upload_is_said(hub: HubServer, source: Source, made: Path, status: int, said: str) -> None:
    hub.fail("PUT /lfs/", status=status)
    with pytest.raises(BadInput, match=said) as caught:
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert "\n" not in str(caught.value)
    assert seen_by_others(hub) == {}


@pytest.mark.parametrize("private", [True, False])
def test_an_empty_repo_is_taken_only_where_nobody_sees_it(
    hub: HubServer, source: Source, made: Path, private: bool
) -> None:
    hub.add_model("smith/tiny", {".gitattributes": b""}, private=private)
    if private:
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
        assert not hub.repo("smith/tiny").private
        return
    with pytest.raises(BadInput, match="Tricksmith did not make it"):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)


def test_a_repo_whose_files_are_not_told_is_not_taken_for_empty(
    hub: HubServer, source: Source, made: Path
) -> None:
    hub.siblings = False
    hub.add_model("smith/tiny", {"README.md": b"mine"}, private=True)
    with pytest.raises(BadInput, match="Tricksmith did not make it"):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    publish(made, "smith/new", evidence=EQUIVALENT, source=source)
    assert_published(hub, made, "smith/new")


def test_a_gated_sources_conversion_is_gated(hub: HubServer, source: Source, made: Path) -> None:
    gated = dataclasses.replace(source, gated=True)
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=gated)
    assert hub.repo("smith/tiny").gated == "auto"


def test_a_slow_hub_is_given_up_in_time(
    hub: HubServer, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRANSFER_S", 0.2)
    hub.fail("whoami", delay=3.0, times=9)
    with pytest.raises(client.HubUnavailable, match="cannot be reached"):
        check_destination("smith/tiny")


@pytest.mark.parametrize(
    ("user", "pr", "said"),
    [
        (User("fine", role="fineGrained", scopes={"fine": ("repo.write",)}), False, None),
        (
            User("fine", role="fineGrained", scopes={"fine": ("repo.content.read",)}),
            False,
            "right 'repo.write'",
        ),
        (User("fine", role="fineGrained", scopes={}), True, "right 'discussion.write'"),
        (User("fine", expires="2099-01-01T00:00:00.000Z"), False, None),
    ],
)
def test_a_tokens_scopes_are_checked_first(hub: HubServer, user: User, pr: bool, said: str | None) -> None:
    hub.users["hf_fine"] = user
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    to = "other/tiny" if pr else "fine/tiny"
    if said is None:
        assert check_destination(to, token="hf_fine", pr=pr) == to
        return
    with pytest.raises(BadInput, match=said):
        check_destination(to, token="hf_fine", pr=pr)


def test_no_token_is_in_any_line(hub: HubServer, source: Source, made: Path, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    for pattern in ("commit/main", "whoami", "PUT /lfs/"):
        hub.fail(pattern, status=403)
    for attempt in (
        lambda: check_destination("smith/tiny"),
        lambda: publish(made, "smith/tiny", evidence=EQUIVALENT, source=source),
        lambda: publish(made, "smith/tiny", evidence=EQUIVALENT, source=source),
    ):
        with pytest.raises(BadInput) as caught:
            attempt()
        assert "hf_smith" not in repr(caught.value)
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert "hf_smith" not in caplog.text
