"""Hubs that are not the one: terse, talkative, without this or that. The whole way works on each of them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.api import Service
from service.converted import converted_by
from service.deciding import Outcome
from service.fetch import fetch
from service.hub import HubUnavailable, patience
from service.manifest import read_manifest
from service.papers import write_papers
from service.publish import check_destination, publish
from service.source import Source, resolve
from service.watches import Kind, new_watch
from tests.hub.manners import chatty, terse
from tests.hub.world import Blob
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer
from tricks import BadInput

LATER = "2099-01-01T00:00:00.000Z"

HUBS: dict[str, dict[str, Any]] = {
    "terse": {"manner": terse, "linked": False, "error_codes": False, "branches": False},
    "terse, without redirects or ranges": {"manner": terse, "redirects": False, "ranges": False},
    "talkative": {"manner": chatty},
    "every file large": {"upload_mode": "lfs", "conflict": 409},
    "no file large": {"upload_mode": "regular", "bare_listings": True},
    "weak tags, answers in pieces": {"etag": 'W/"{}"', "chunked": True, "away_by": 307},
    "bare tags, compressed answers": {"etag": "{}", "zips": True, "away_by": 301},
    "deaf to filters": {"asks": False, "page_size": 1, "discussions": False},
    "without lists of requests": {"discussions": False, "pull_heads": False, "siblings": False},
}


@pytest.fixture(params=HUBS, ids=list(HUBS))
def other(hub: HubServer, request: pytest.FixtureRequest) -> HubServer:
    for name, value in HUBS[request.param].items():
        assert hasattr(hub, name)
        setattr(hub, name, value)
    return hub


def as_verified(service: Service, model: str, out: Path) -> Source:
    """Convert `model` into `out`, with the card that it would have after a comparison."""
    service.convert(model, out, ["flashnorm"])
    card = (out / "README.md").read_text().replace("**UNVERIFIED**", "**Verdict: equivalent**")
    write_papers(out, card=card)
    return resolve(model)


def files(hub: HubServer, repo: str, revision: str = "main") -> dict[str, bytes]:
    at = hub.repo(repo).at(revision)
    assert at is not None
    return {name: blob.data for name, blob in at.files.items() if name != ".gitattributes"}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_whole_way(other: HubServer, running: Service, small_llama: Path, tmp_path: Path) -> None:
    other.add_model("forge/small", small_llama)
    looked = running.preflight("forge/small", ["flashnorm"])
    assert looked.plan.fits
    assert looked.download == sum(
        (small_llama / file.name).stat().st_size for file in resolve("forge/small").files
    )
    out = tmp_path / "out"
    source = as_verified(running, "forge/small", out)
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["source"]["commit"] == other.repo("forge/small").refs["main"]

    assert check_destination("smith/made", source=source) == "smith/made"
    address = publish(out, "smith/made", evidence=EQUIVALENT, source=source)
    repo = other.repo("smith/made")
    assert not repo.private
    assert files(other, "smith/made") == contents(out)
    assert len(repo.commits) == 2
    assert publish(out, "smith/made", evidence=EQUIVALENT, source=source) == address
    assert len(repo.commits) == 2

    made = running.inspect("smith/made")
    assert made.source == f"forge/small@{manifest['source']['commit']}"
    assert made.evidence is not None
    assert running.reproduce("smith/made").same

    other.add_model("other/theirs", {"README.md": b"theirs"})
    asked = publish(out, "other/theirs", evidence=EQUIVALENT, source=source, pr=True)
    assert asked == f"{other.endpoint}/other/theirs/discussions/1"
    assert files(other, "other/theirs", "refs/pr/1") == contents(out)
    assert files(other, "other/theirs") == {"README.md": b"theirs"}


def test_a_later_conversion_and_its_conflict(other: HubServer, tmp_path: Path) -> None:
    first = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(first, tmp_path / "work")
    publish(tmp_path / "work", "smith/tiny", evidence=EQUIVALENT, source=first)
    later = resolve(str(write_model(tmp_path / "later" / "tiny", shards=1, seed=1)))
    convert_by_copy(later, tmp_path / "work2")

    def meddle(unit: str, done: int, total: int) -> None:
        repo = other.repo("smith/tiny")
        head = repo.at("main")
        if len(repo.commits) == 2 and head is not None:
            repo.commit({**head.files}, "an edit by hand")

    with pytest.raises(BadInput, match="meanwhile; look at it"):
        publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=later, report=meddle)
    publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=later)
    assert files(other, "smith/tiny") == contents(tmp_path / "work2")


def test_a_watch_follows(other: HubServer, running: Service, small_llama: Path) -> None:
    for owner in ("forge", "other"):
        other.add_model(f"{owner}/old", small_llama)
    made = new_watch(Kind.AUTHOR, "forge", ["flashnorm"], "smith")
    running.watches.add(made)
    assert not [d for d in running.watching.poll(made) if d.outcome is Outcome.QUEUED]
    for owner in ("forge", "other"):
        other.add_model(f"{owner}/new", small_llama).created = LATER
    found = running.watching.poll(made)
    assert [(d.model, d.outcome) for d in found] == [("forge/new", Outcome.QUEUED)]
    assert running.watching.poll(made) == []


def test_bytes_are_checked_though_the_listing_says_nothing_of_them(
    other: HubServer, small_llama: Path, tmp_path: Path
) -> None:
    other.add_model("forge/small", small_llama)
    source = resolve("forge/small")
    assert all(file.sha256 or file.blob for file in source.files)
    other.fail(r"GET /(forge/small/resolve|cdn)/.*model\.safetensors", flip=True, times=2)
    with pytest.raises(HubUnavailable, match="arrived with other bytes"):
        fetch(source, tmp_path / "in")


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        lambda blob: sha1(blob.data),
        lambda blob: blob.sha256[:40],
        lambda blob: blob.sha256,
        lambda blob: str(uuid.uuid5(uuid.NAMESPACE_OID, blob.sha256)),
        lambda blob: sha1(b"version https://git-lfs" + blob.data) if blob.lfs else sha1(blob.data),
    ],
    ids=["sha1", "a part of sha256", "sha256", "no digest", "that of a pointer"],
)
def test_a_hub_names_contents_in_its_own_way(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    name: Callable[[Blob], str],
) -> None:
    """Small files' ids are of whatever form, and of large files nothing is listed but such an id."""
    monkeypatch.setattr(Blob, "oid", property(name))
    monkeypatch.setattr(hub, "manner", without_lfs)
    folder = write_model(tmp_path / "tiny")
    hub.add_model("forge/tiny", folder)
    source = resolve("forge/tiny")
    assert all(file.sha256 for file in source.files if file.name.endswith(".safetensors"))
    out = fetch(source, tmp_path / "in")
    assert all((out / file.name).read_bytes() == (folder / file.name).read_bytes() for file in source.files)
    if "no digest" not in request.node.name:
        hub.fail("GET .*/tokenizer.json", flip=True, times=2)
        with pytest.raises(HubUnavailable, match="arrived with other bytes"):
            fetch(source, tmp_path / "in2")


def without_lfs(path: str, data: Any) -> Any:
    if isinstance(data, list):
        return [without_lfs(path, item) for item in data]
    if not isinstance(data, dict):
        return data
    return {key: without_lfs(path, value) for key, value in data.items() if key != "lfs"}


def test_a_request_that_may_be_open_is_not_sent_again(hub: HubServer, tmp_path: Path) -> None:
    """The worker dies between opening it and noting it, on a Hub that lists no requests."""
    hub.discussions = hub.pull_heads = False
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    hub.fail("commit/main", lost=True)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"is not known, .*; look at .*/other/tiny/discussions"):
            publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    assert len(hub.repo("other/tiny").prs) == 1


def taciturn(path: str, data: Any) -> Any:
    """Answers that say that it was done, and nothing else."""
    done = path == "/api/repos/create" or "/commit/" in path
    return {"success": True} if done else data


@pytest.mark.parametrize("pr", [False, True])
def test_what_was_done_is_seen_though_the_answer_does_not_say_so(
    hub: HubServer, tmp_path: Path, pr: bool
) -> None:
    hub.manner = taciturn
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    to = "other/tiny" if pr else "smith/tiny"
    address = publish(tmp_path / "work", to, evidence=EQUIVALENT, source=source, pr=pr)
    assert address == f"{hub.endpoint}/{to}" + ("/discussions/1" if pr else "")
    assert files(hub, to, "refs/pr/1" if pr else "main") == contents(tmp_path / "work")
    assert len(hub.repo(to).commits) == 2
    assert not hub.repo(to).private


def test_a_hub_that_does_not_say_who_asks(hub: HubServer, running: Service, small_llama: Path) -> None:
    hub.add_model("forge/small", small_llama)
    hub.manner = lambda path, data: {} if "whoami" in path else data
    with pytest.raises(BadInput, match="does not say whose token this is; name the destination"):
        running.submit("forge/small", ["flashnorm"])
    assert running.submit("forge/small", ["flashnorm"], "smith/made").to == "smith/made"


@pytest.mark.parametrize("status", [429, 403])
def test_a_request_that_was_surely_refused_is_sent_again(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.discussions = hub.pull_heads = False
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    hub.fail("commit/main", status=status, headers={"Retry-After": "0"})
    if status == 403:
        with pytest.raises(BadInput, match="may not do that"):
            publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    assert len(hub.repo("other/tiny").prs) == 1


@pytest.mark.parametrize("status", ["open", "draft", "merged", "closed"])
def test_a_request_is_found_again_whatever_became_of_it(hub: HubServer, tmp_path: Path, status: str) -> None:
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    source = resolve(str(write_model(tmp_path / "tiny")))
    manifest = convert_by_copy(source, tmp_path / "work")
    address = publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    hub.repo("other/tiny").prs[0]["status"] = status
    # Another machine, with other versions, carries the same request out again.
    newer = manifest | {"versions": manifest["versions"] | {"torch": "99.0"}}
    write_papers(tmp_path / "work", card=(tmp_path / "work" / "README.md").read_text(), manifest=newer)
    if status == "closed":
        with pytest.raises(BadInput, match="offered this and was closed; ask its owner"):
            publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    else:
        again = publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
        assert again == address
    assert len(hub.repo("other/tiny").prs) == 1


def test_a_request_that_was_not_read_back_is_read_back_the_next_time(hub: HubServer, tmp_path: Path) -> None:
    hub.add_model("other/tiny", {"README.md": b"theirs"})
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    hub.fail("GET /cdn/", flip=True, times=2)
    for _ in range(2):
        with pytest.raises(Exception, match="did not arrive"):
            publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    publish(tmp_path / "work", "other/tiny", evidence=EQUIVALENT, source=source, pr=True)
    assert len(hub.repo("other/tiny").prs) == 1


def card(licence: str, tags: str = "[tiny]") -> bytes:
    return f"---\nlicense: {licence}\nlanguage: [en]\ntags: {tags}\n---\n# A model\n".encode()


def test_a_card_that_the_hub_does_not_read_is_read_here(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    hub.manner = terse
    of = {path.name: path.read_bytes() for path in small_llama.iterdir()}
    hub.add_model("forge/plain", of | {"README.md": card("apache-2.0")})
    hub.add_model("forge/nd", of | {"README.md": card("cc-by-nd-4.0")})
    hub.add_model("forge/out", of | {"README.md": card("mit", "[no-tricksmith]")})
    source = resolve("forge/plain")
    assert source.licence == "apache-2.0"
    assert source.card == {"license": "apache-2.0", "language": ["en"], "tags": ["tiny"]}
    hub.add_collection("forge/all-0123", ["forge/plain", "forge/nd", "forge/out"])
    made = new_watch(Kind.COLLECTION, "forge/all-0123", ["flashnorm"], "smith")
    running.watches.add(made)
    assert {d.model: d.reason for d in running.watching.poll(made)} == {
        "forge/plain": None,
        "forge/nd": "its licence (cc-by-nd-4.0) forbids derivatives",
        "forge/out": "its owner opted out",
    }


def test_a_conversion_is_known_though_the_listing_says_nothing_of_it(
    hub: HubServer, running: Service, small_llama: Path, tmp_path: Path
) -> None:
    hub.manner, hub.asks = terse, False
    hub.add_model("forge/small", small_llama)
    running.convert("forge/small", tmp_path / "out", ["flashnorm"])
    hub.add_model("other/small-FlashNorm", tmp_path / "out")
    assert running.preflight("forge/small", ["flashnorm"]).converted == "other/small-FlashNorm"


def test_what_a_hub_does_not_offer_is_no_reason_to_wait(hub: HubServer, small_llama: Path) -> None:
    hub.add_model("forge/small", small_llama)
    hub.fail("GET /api/models$", status=501, times=99)
    assert converted_by(resolve("forge/small"), ["flashnorm"]) is None


@pytest.mark.parametrize("what", ["open", "gated", "private"])
def test_what_strangers_may_not_read_is_known_though_it_is_not_said(
    hub: HubServer, small_llama: Path, what: str
) -> None:
    hub.manner = terse
    hub.add_model("forge/small", small_llama, **({} if what == "open" else {what: True}))
    source = resolve("forge/small")
    assert (source.gated, source.private) == (what == "gated", what == "private")


def test_a_token_whose_organisations_are_not_told_is_left_to_the_hub(hub: HubServer) -> None:
    hub.manner = terse
    assert check_destination("forge/new") == "forge/new"


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (403, "Access to this resource is disabled.", "is disabled on the Hub"),
        (451, "gone for good", "is disabled on the Hub"),
        (410, "gone", "is gone from the Hub"),
        (403, "Your request to access model x is awaiting a review", "is gated and this token has no access"),
        (403, "no", "may not do that"),
        (400, "bad", "refuses the request"),
        (418, "", "refuses the request"),
        (500, "<html>oops</html>", "failed on forge/tiny"),
    ],
)
@pytest.mark.parametrize("form", ["header", "json", "text"])
def test_a_refusal_is_understood_in_any_form(
    hub: HubServer, status: int, text: str, said: str, form: str
) -> None:
    body = json.dumps({"error": text}) if form == "json" else text
    what = {"headers": {"X-Error-Message": text}} if form == "header" else {"body": body.encode()}
    hub.fail("GET /api/models/forge/tiny", status=status, times=9, **what)
    with patience(1.0, tries=1), pytest.raises(BadInput, match=said) as caught:
        resolve("forge/tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["Storage quota exceeded", "storage limit reached"])
def test_a_full_account_is_said_by_a_commit_too(hub: HubServer, tmp_path: Path, text: str) -> None:
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    hub.fail("commit/main", status=403, body=text.encode())
    with pytest.raises(BadInput, match="has no room for smith/tiny; free storage"):
        publish(tmp_path / "work", "smith/tiny", evidence=EQUIVALENT, source=source)
    assert hub.repo("smith/tiny").private
