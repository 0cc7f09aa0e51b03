"""Publishing: never without evidence, never over what is not ours, never half, never twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evals import Verdict
from service.manifest import digest
from service.publish import NotPublishable, check_destination, publish
from service.source import Source, resolve
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer, User
from tricks import BadInput, Cancelled


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return resolve(str(write_model(tmp_path / "tiny")))


@pytest.fixture
def made(source: Source, tmp_path: Path) -> Path:
    convert_by_copy(source, tmp_path / "work")
    return tmp_path / "work"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_holds_everything_and_nothing_else(source: Source, made: Path, tmp_path: Path) -> None:
    (made / "notes.txt").write_text("not part of the conversion")
    seen: list[tuple[str, int, int]] = []
    to = tmp_path / "out" / "tiny-flashnorm"
    assert publish(
        made, str(to), evidence=EQUIVALENT, source=source, report=lambda *s: seen.append(s)
    ) == str(to)

    expected = contents(made)
    del expected["notes.txt"]
    assert contents(to) == expected
    assert json.loads(expected["evidence.json"])["verdict"] == "equivalent"
    assert [p.name for p in to.parent.iterdir()] == ["tiny-flashnorm"]
    assert seen[-1][1] == seen[-1][2] == sum(len(data) for data in expected.values())


@pytest.mark.parametrize("to", ["folder", "smith/tiny-flashnorm"])
def test_nothing_is_published_without_evidence(
    hub: HubServer, source: Source, made: Path, tmp_path: Path, to: str
) -> None:
    to = str(tmp_path / "out") if to == "folder" else to
    different = dataclasses.replace(EQUIVALENT, verdict=Verdict.DIFFERENT)
    none: Any = None
    for evidence, why in ((none, "not compared"), (different, "the verdict is different")):
        with pytest.raises(NotPublishable, match=why):
            publish(made, to, evidence=evidence, source=source)
    (made / "README.md").write_text("---\nlicense: mit\n---\n\n**UNVERIFIED**: not yet\n\n# Tiny\n")
    with pytest.raises(NotPublishable, match="UNVERIFIED"):
        publish(made, to, evidence=EQUIVALENT, source=source)
    assert not (tmp_path / "out").exists()
    assert hub.repos == {}


def test_files_changed_after_the_conversion_are_not_published(
    source: Source, made: Path, tmp_path: Path
) -> None:
    (made / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"config\.json is not the file that was converted"):
        publish(made, str(tmp_path / "out"), evidence=EQUIVALENT, source=source)
    assert not (tmp_path / "out").exists()


def test_publishing_the_same_again_changes_nothing(source: Source, made: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    publish(made, str(to), evidence=EQUIVALENT, source=source)
    before = {p: p.stat().st_mtime_ns for p in to.rglob("*")}
    inode = to.stat().st_ino
    publish(made, str(to), evidence=EQUIVALENT, source=source)
    assert to.stat().st_ino == inode
    assert {p: p.stat().st_mtime_ns for p in to.rglob("*")} == before


def test_a_newer_conversion_replaces_ours_whole(source: Source, made: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    publish(made, str(to), evidence=EQUIVALENT, source=source)
    (to / "left-over.txt").write_text("from before")
    other = resolve(str(write_model(tmp_path / "other" / "tiny", shards=1, seed=1)))
    convert_by_copy(other, tmp_path / "work2")
    publish(tmp_path / "work2", str(to), evidence=EQUIVALENT, source=other)
    assert contents(to) == contents(tmp_path / "work2")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_replacement_that_stopped_between_its_renames_is_mended(
    source: Source, made: Path, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    publish(made, str(to), evidence=EQUIVALENT, source=source)
    to.rename(tmp_path / ".out.old")
    publish(made, str(to), evidence=EQUIVALENT, source=source)
    assert contents(to) == contents(made)
    assert not (tmp_path / ".out.old").exists()


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link", "foreign manifest"])
def test_a_folder_that_is_not_ours_is_left_alone(
    source: Source, made: Path, tmp_path: Path, kind: str
) -> None:
    to = tmp_path / "out"
    if kind == "file":
        to.write_text("mine")
    elif kind == "link":
        to.symlink_to(tmp_path / "nowhere")
    else:
        to.mkdir()
        if kind == "folder":
            (to / "mine.txt").write_text("mine")
        if kind == "foreign manifest":
            (to / "conversion.json").write_text('{"schema": 1, "tool": {"name": "another"}}')
    for attempt in (
        lambda: check_destination(str(to)),
        lambda: publish(made, str(to), evidence=EQUIVALENT, source=source),
    ):
        with pytest.raises(
            BadInput, match="exists and Tricksmith did not make it; choose another destination"
        ):
            attempt()
    assert not (to / "README.md").exists()


def test_a_cancelled_publication_leaves_nothing(source: Source, made: Path, tmp_path: Path) -> None:
    def stop(unit: str, done: int, total: int) -> None:
        if done > total / 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        publish(made, str(tmp_path / "out" / "x"), evidence=EQUIVALENT, source=source, report=stop)
    assert list((tmp_path / "out").iterdir()) == []


# the Hub


def test_a_new_repo_is_one_commit_and_public_only_when_complete(
    hub: HubServer, source: Source, made: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    address = publish(
        made, "forge/tiny-flashnorm", evidence=EQUIVALENT, source=source, report=lambda *s: seen.append(s)
    )

    repo = hub.repo("forge/tiny-flashnorm")
    assert address == f"{hub.endpoint}/forge/tiny-flashnorm"
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == contents(made)
    mark = digest(json.loads((made / "conversion.json").read_text()))[:12]
    assert [commit.title for commit in repo.commits][1:] == [f"flashnorm of tiny, by Tricksmith ({mark})"]
    assert not repo.private
    lines = [(r.method, r.path.split("/")[-2:]) for r in hub.requests if r.method in ("POST", "PUT")]
    assert lines[0] == ("POST", ["repos", "create"])
    assert lines[-1] == ("PUT", ["tiny-flashnorm", "settings"])
    assert seen[-1][1] == seen[-1][2]


def test_a_private_repo_stays_private(hub: HubServer, source: Source, made: Path) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source, private=True)
    assert hub.repo("smith/tiny").private


def test_a_private_source_does_not_become_public(hub: HubServer, source: Source, made: Path) -> None:
    secret = dataclasses.replace(source, private=True)
    with pytest.raises(BadInput, match="is private; publish its conversion with --private"):
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=secret)
    assert hub.repos == {}
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=secret, private=True)


def test_publishing_twice_makes_no_second_commit(hub: HubServer, source: Source, made: Path) -> None:
    first = publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert publish(made, "smith/tiny", evidence=EQUIVALENT, source=source) == first
    assert len(hub.repo("smith/tiny").commits) == 2


@pytest.mark.parametrize(
    "where", ["PUT /lfs/", "POST .*/commit/main", "PUT .*/settings", "POST .*/preupload/"]
)
def test_a_publication_that_failed_stays_hidden_and_can_be_finished(
    hub: HubServer, source: Source, made: Path, where: str
) -> None:
    hub.fail(where, status=403)
    with pytest.raises(BadInput) as caught:
        publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    assert "\n" not in str(caught.value)
    assert hub.repo("smith/tiny").private
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    repo = hub.repo("smith/tiny")
    assert not repo.private
    assert len(repo.commits) == 2
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == contents(made)


def test_a_newer_conversion_is_one_more_commit_without_the_old_files(
    hub: HubServer, source: Source, made: Path, tmp_path: Path
) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source, private=True)
    other = resolve(str(write_model(tmp_path / "other" / "tiny", shards=1, seed=1)))
    convert_by_copy(other, tmp_path / "work2")
    publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=other)
    repo = hub.repo("smith/tiny")
    assert len(repo.commits) == 3
    assert repo.private  # as its owner had it
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == contents(
        tmp_path / "work2"
    )


def test_a_repo_that_is_not_ours_is_left_alone(hub: HubServer, source: Source, made: Path) -> None:
    hub.add_model("smith/precious", {"README.md": b"mine"})
    for attempt in (
        lambda: check_destination("smith/precious"),
        lambda: publish(made, "smith/precious", evidence=EQUIVALENT, source=source),
    ):
        with pytest.raises(BadInput, match="smith/precious exists and Tricksmith did not make it"):
            attempt()
    assert hub.repo("smith/precious").files == {"README.md": b"mine"}


def test_a_pull_request_is_opened_once(hub: HubServer, source: Source, made: Path) -> None:
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    assert check_destination("other/tiny", pr=True) == "other/tiny"
    first = publish(made, "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    assert first == f"{hub.endpoint}/other/tiny/discussions/1"
    assert publish(made, "other/tiny", evidence=EQUIVALENT, source=source, pr=True) == first
    repo = hub.repo("other/tiny")
    assert repo.files == {"README.md": b"theirs"}
    assert len(repo.prs) == 1
    offered = repo.at("refs/pr/1")
    assert offered is not None
    assert {name: blob.data for name, blob in offered.files.items()} == contents(made)


def test_somebody_elses_commit_in_between_is_not_overwritten(
    hub: HubServer, source: Source, made: Path, tmp_path: Path
) -> None:
    publish(made, "smith/tiny", evidence=EQUIVALENT, source=source)
    other = resolve(str(write_model(tmp_path / "other" / "tiny", shards=1, seed=1)))
    convert_by_copy(other, tmp_path / "work2")

    def meddle(unit: str, done: int, total: int) -> None:
        repo = hub.repo("smith/tiny")
        if len(repo.commits) == 2:
            repo.commit({**repo.at("main").files}, "an edit by hand")  # type: ignore[union-attr]

    with pytest.raises(BadInput, match="moved to another commit meanwhile"):
        publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=other, report=meddle)
    assert [commit.title for commit in hub.repo("smith/tiny").commits][2] == "an edit by hand"
    head = hub.repo("smith/tiny").at("main")
    assert head is not None
    assert head.title == "an edit by hand"


@pytest.mark.parametrize(
    ("to", "pr", "message"),
    [
        ("", False, "no destination given"),
        ("a\nb/c", False, "holds a control character"),
        ("smith/b c", False, "is no Hub id"),
        ("other/tiny", False, "may not write to other; use one of: forge, smith"),
        ("other/tiny", True, "is not on the Hub; a pull request needs a repo"),
        ("./folder", True, "a pull request goes to a Hub repo"),
    ],
)
def test_destinations_that_will_not_do(hub: HubServer, to: str, pr: bool, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_destination(to, pr=pr)


def test_a_token_that_may_not_write_is_said_early(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="may only read"):
        check_destination("reader/tiny", token="hf_reader")
    with pytest.raises(BadInput, match="does not accept this token"):
        check_destination("smith/tiny", token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match="no Hub token found"):
        check_destination("smith/tiny")
    hub.users["hf_bare"] = User("bare")
    assert check_destination("bare/tiny", token="hf_bare") == "bare/tiny"


def test_a_folder_destination_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for written in ("out", "./out", "out/"):
        assert check_destination(written) == str(tmp_path / "out")
