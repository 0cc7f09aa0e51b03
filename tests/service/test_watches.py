"""Watches: each release once, nothing its owner did not leave open, and in words why not the rest."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.api import Service
from service.deciding import BEFORE, Decision, Outcome
from service.hub import HubUnavailable
from service.jobs import State
from service.limits import Limits
from service.watches import Kind, Watch, new_watch
from service.watching import MAX_FAILURES
from tests.hub_server import HubServer
from tricks import BadInput

LATER = "2099-01-01T00:00:00.000Z"  # after any watch was added


@pytest.fixture
def releases(hub: HubServer, small_llama: Path) -> HubServer:
    """Three releases of `forge`, one older than any watch."""
    for name, created in (
        ("new", LATER),
        ("newer", "2099-01-02T00:00:00.000Z"),
        ("old", "2020-01-01T00:00:00.000Z"),
    ):
        hub.add_model(f"forge/{name}", small_llama).created = created
    return hub


def watch(service: Service, kind: Kind, target: str, **filters: Any) -> Watch:
    made = new_watch(kind, target, ["flashnorm"], filters.pop("to", "smith"), **filters)
    service.watches.add(made)
    return made


def told(decisions: list[Decision]) -> dict[str, str]:
    """Model -> outcome, or the reason where there is one."""
    return {d.model: d.reason or d.outcome.value for d in decisions}


def with_card(folder: Path, text: str) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return files | {"README.md": f"---\n{text}\n---\n# A model\n".encode()}


def test_an_authors_releases_are_queued_once(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.AUTHOR, "forge")
    first = running.watching.poll(made)
    assert told(first) == {
        "forge/newer": "queued",
        "forge/new": "queued",
        "forge/old": BEFORE,
    }
    jobs = {job.to: job for job in running.jobs()}
    assert sorted(jobs) == ["smith/new-FlashNorm", "smith/newer-FlashNorm"]
    assert jobs["smith/new-FlashNorm"].model == f"forge/new@{releases.repo('forge/new').refs['main']}"
    assert not any(job.pr for job in jobs.values())

    assert running.watching.poll(made) == []
    running.watches.remove(made.id)
    again = watch(running, Kind.SEARCH, "new")  # another watch that means the same releases
    assert set(told(running.watching.poll(again)).values()) == {
        f"job {jobs[to].id} converts it already" for to in jobs
    }
    assert len(running.jobs()) == 2


def test_a_dry_run_tells_and_queues_nothing(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.AUTHOR, "forge", per_poll=1)
    expected = {
        "forge/newer": "queued",
        "forge/new": "1 per poll are enough; it comes next time",
        "forge/old": BEFORE,
    }
    assert told(running.watching.poll(made, dry_run=True)) == expected
    assert running.jobs() == []
    assert running.watches.history(made.id) == []
    assert told(running.watching.poll(made)) == expected
    (job,) = running.jobs()
    again = expected | {"forge/newer": f"job {job.id} converts it already", "forge/new": "queued"}
    assert told(running.watching.poll(made, dry_run=True)) == again


def test_caps_hold_per_poll_and_per_day(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.AUTHOR, "forge", per_poll=1, per_day=1, deny=["*/old"])
    assert told(running.watching.poll(made))["forge/newer"] == "queued"
    assert told(running.watching.poll(made))["forge/new"] == "1 per day are enough; it comes tomorrow"
    roomy = dataclasses.replace(made, per_day=2)
    running.watches.add(roomy)
    assert told(running.watching.poll(roomy)) == {"forge/new": "queued"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gated": "auto"}, "it is gated: its owner decides who gets it"),
        ({"private": True}, "it is private"),
        ({"disabled": True}, "disabled on the Hub"),
        ({"unsafe": ("model.safetensors",)}, "scanners call model.safetensors of forge/new unsafe"),
    ],
)
def test_what_its_owner_did_not_leave_open_is_left_alone(
    hub: HubServer, running: Service, small_llama: Path, change: dict[str, Any], why: str
) -> None:
    repo = hub.add_model("forge/new", small_llama)
    for name, value in change.items():
        setattr(repo, name, value)
    made = watch(running, Kind.COLLECTION, "forge/liked-1")
    hub.add_collection("forge/liked-1", ["forge/new"])
    (decision,) = running.watching.poll(made)
    assert decision.outcome is Outcome.SKIPPED
    assert decision.reason is not None
    assert why in decision.reason


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ("license: cc-by-nc-nd-4.0", "its licence (cc-by-nc-nd-4.0) forbids derivatives"),
        ("license: other\nlicense_name: acme-no-derivatives", "its licence (acme-no-derivatives) forbids"),
        ("tags: [no-tricksmith]", "its owner opted out"),
        ("tags: [tricksmith, flashnorm]", "it is a conversion itself"),
    ],
)
def test_what_a_card_forbids_is_left_alone(
    hub: HubServer, running: Service, small_llama: Path, card: str, why: str
) -> None:
    hub.add_model("other/model", with_card(small_llama, card))
    made = watch(running, Kind.MODEL, "other/model")
    (decision,) = running.watching.poll(made)
    assert decision.outcome is Outcome.SKIPPED
    assert why in (decision.reason or "")
    assert running.jobs() == []


def test_owners_opt_out_by_a_list_too(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.MODEL, "forge/new")
    running.settings.data.mkdir(parents=True, exist_ok=True)
    (running.settings.data / "opt-out.txt").write_text("# asked on Monday\nForge  # all of it\n")
    assert told(running.watching.poll(made)) == {"forge/new": "its owner opted out"}


@pytest.mark.parametrize(
    ("filters", "why"),
    [
        ({"allow": ["*/*-instruct"]}, "no --allow pattern fits it"),
        ({"deny": ["FORGE/N*"]}, "a --deny pattern fits it"),
        ({"min_downloads": 10}, "it was downloaded 3 times, not 10"),
        ({"task": "fill-mask"}, "its task is text-generation, not fill-mask"),
        ({"library": "mlx"}, "its library is transformers, not mlx"),
        ({"tags": ["tiny", "code"]}, "it is not tagged code"),
        ({"min_age": 2.0}, "it is younger than 2 days; it comes when it is older"),
    ],
)
def test_filters_say_what_they_filter(
    hub: HubServer, running: Service, small_llama: Path, filters: dict[str, Any], why: str
) -> None:
    repo = hub.add_model("forge/new", with_card(small_llama, "tags: [tiny]"))
    repo.downloads, repo.created = 3, LATER
    made = watch(running, Kind.MODEL, "forge/new", **filters)
    assert told(running.watching.poll(made, dry_run=True)) == {"forge/new": why}


def test_a_new_revision_is_converted_again_when_its_weights_changed(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    repo = hub.add_model("forge/new", small_llama)
    made = watch(running, Kind.MODEL, "forge/new")
    assert told(running.watching.poll(made)) == {"forge/new": "queued"}
    hub.add_model("forge/new", with_card(small_llama, "license: mit"))
    assert told(running.watching.poll(made)) == {"forge/new": "nothing that a conversion reads has changed"}
    changed = with_card(small_llama, "license: mit") | {"generation_config.json": b'{"top_k": 5}'}
    hub.add_model("forge/new", changed)
    assert told(running.watching.poll(made)) == {"forge/new": "queued"}
    assert {job.to for job in running.jobs()} == {"smith/new-FlashNorm"}
    assert running.jobs()[0].model.endswith(repo.refs["main"])


def test_what_somebody_published_already_is_not_made_again(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    card = b"---\nbase_model: forge/new\ntags: [flashnorm]\n---\n# Theirs\n"
    hub.add_model("other/new-flash", {"README.md": card})
    made = watch(running, Kind.MODEL, "forge/new")
    assert told(running.watching.poll(made)) == {"forge/new": "other/new-flash is its conversion already"}


def test_a_model_that_cannot_be_planned_is_skipped_with_the_reason(hub: HubServer, running: Service) -> None:
    hub.add_model("forge/gguf", {"config.json": b"{}", "model.gguf": b"GGUF"})
    made = watch(running, Kind.MODEL, "forge/gguf")
    (decision,) = running.watching.poll(made)
    assert decision.outcome is Outcome.SKIPPED
    assert "holds no safetensors (only .gguf)" in (decision.reason or "")


def test_what_was_private_for_long_is_new_when_it_is_released(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    secret = hub.add_model("other/secret", small_llama, private=True)
    hub.add_model("other/known", small_llama)
    made = watch(running, Kind.AUTHOR, "other")
    assert told(running.watching.poll(made)) == {"other/known": BEFORE}
    secret.private = False
    hub.add_model("other/known", {"config.json": b"{}"})
    assert told(running.watching.poll(made)) == {"other/secret": "queued"}
    assert running.watches.history(made.id)[0]["model"] == "other/secret"


def test_a_watch_may_look_back(hub: HubServer, running: Service, small_llama: Path) -> None:
    hub.add_model("forge/year", small_llama)
    made = watch(running, Kind.AUTHOR, "forge", max_age=3650.0)
    assert told(running.watching.poll(made)) == {"forge/year": "queued"}


def test_a_private_source_is_refused_a_public_place_before_any_work(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    hub.add_model("forge/secret", small_llama, private=True)
    with pytest.raises(BadInput, match="forge/secret is private; publish its conversion with --private"):
        running.submit("forge/secret", ["flashnorm"], "smith/open")
    assert running.jobs() == []
    assert running.submit("forge/secret", ["flashnorm"], "smith/open", private=True).private


def test_pages_are_followed(hub: HubServer, running: Service, small_llama: Path) -> None:
    hub.page_size = 2
    for number in range(5):
        hub.add_model(f"forge/m{number}", {"config.json": b"{}"}).created = LATER
    made = watch(running, Kind.AUTHOR, "forge")
    assert len(running.watching.poll(made)) == 5
    assert hub.calls("GET /api/models$") == 3


def test_a_listing_without_commits_is_completed(hub: HubServer, running: Service, small_llama: Path) -> None:
    hub.add_model("forge/new", small_llama)
    hub.add_collection("forge/liked-1", ["forge/new", "forge/gone"])
    made = watch(running, Kind.COLLECTION, "forge/liked-1")
    decisions = told(running.watching.poll(made))
    assert decisions["forge/new"] == "queued"
    assert "forge/gone is not on the Hub" in decisions["forge/gone"]
    hub.requests.clear()
    assert "forge/new" not in told(running.watching.poll(made))
    assert hub.calls("GET /api/models/forge/new") == 0  # decided: not asked for again


def test_a_busy_hub_is_waited_for(releases: HubServer, running: Service) -> None:
    releases.fail("GET /api/models$", status=429, headers={"Retry-After": "0.2"})
    made = watch(running, Kind.AUTHOR, "forge")
    began = time.monotonic()
    assert told(running.watching.poll(made))["forge/new"] == "queued"
    assert time.monotonic() - began >= 0.2


def test_a_watch_that_keeps_failing_pauses_itself(hub: HubServer, running: Service) -> None:
    made = watch(running, Kind.MODEL, "forge/nowhere")
    for _ in range(MAX_FAILURES):
        assert made in running.watching.due(now=time.time() + 10_000)
        with pytest.raises(BadInput, match="forge/nowhere is not on the Hub"):
            running.watching.poll(made)
    assert (
        "5 polls in a row failed, the last: forge/nowhere is not on"
        in running.watches.state(made.id)["paused"]
    )
    assert running.watching.due(now=time.time() + 10_000) == []


def test_a_hub_that_is_away_lets_its_watches_rest(
    releases: HubServer, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watch(running, Kind.AUTHOR, "forge")
    releases.fail("GET /api/models$", status=429, headers={"Retry-After": "9999"}, times=MAX_FAILURES)
    for _ in range(MAX_FAILURES):
        with pytest.raises(HubUnavailable, match="slow down"):
            running.watching.poll(made)
    why = running.watches.paused(made.id)
    assert why is not None
    assert why.endswith("it is tried again in 6 hours")
    assert running.watching.due(now=time.time() + 10_000) == []
    running.watches.set_state(made.id, until=time.time())  # six hours later
    assert running.watching.due(now=time.time() + 10_000) == [made]
    assert told(running.watching.poll(made))["forge/new"] == "queued"
    assert "paused" not in running.watches.state(made.id)


def test_a_watch_whose_jobs_fail_pauses_itself(hub: HubServer, running: Service, small_llama: Path) -> None:
    for number in range(MAX_FAILURES):
        hub.add_model(f"forge/m{number}", small_llama).created = LATER
    made = watch(running, Kind.AUTHOR, "forge", per_poll=MAX_FAILURES)
    running.watching.poll(made)
    store, _ = running._connect()
    for job in running.jobs():
        store.begin(job.id, "worker", 30)
        store.finish(job.id, "worker", State.FAILED, reason="no memory")
    assert running.watching.poll(made) == []
    assert "its last 5 jobs failed, the newest: no memory" in running.watches.state(made.id)["paused"]
    running.watches.set_state(made.id, paused=None, resumed=time.time())
    assert running.watching.poll(made) == []
    assert not running.watches.state(made.id).get("paused")


def test_a_full_service_is_waited_for(releases: HubServer, running: Service) -> None:
    running.settings = dataclasses.replace(running.settings, limits=Limits(all_waiting=1))
    made = watch(running, Kind.AUTHOR, "forge", deny=["*/old"])
    decisions = {d.model: d.outcome for d in running.watching.poll(made)}
    assert decisions["forge/newer"] is Outcome.QUEUED
    assert decisions["forge/new"] is Outcome.WAITING


def test_a_young_release_comes_on_the_day_that_it_is_old_enough(
    releases: HubServer, running: Service
) -> None:
    soon = datetime.now(UTC) - timedelta(days=1) + timedelta(seconds=2)
    releases.repo("forge/new").created = soon.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    made = watch(running, Kind.AUTHOR, "forge", min_age=1.0, max_age=9.0, deny=["*/newer", "*/old"])
    assert [d.outcome for d in running.watching.poll(made) if d.model == "forge/new"] == [Outcome.WAITING]
    releases.repo("forge/new").created = "2000-01-01T00:00:00.000Z"  # two seconds later
    assert told(running.watching.poll(made))["forge/new"] == "queued"


def test_a_folder_is_the_one_that_was_meant_wherever_the_watch_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_watch(Kind.AUTHOR, "forge", ["flashnorm"], "./made").to == str(tmp_path / "made")
    assert new_watch(Kind.AUTHOR, "forge", ["flashnorm"], "smith").to == "smith"


def test_history_holds_each_decision_once(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.AUTHOR, "forge", per_poll=1)
    for _ in range(3):
        running.watching.poll(made)
    said = [(entry["model"], entry["outcome"]) for entry in running.watches.history(made.id)]
    assert said == [
        ("forge/new", "queued"),
        ("forge/new", "waiting"),
        ("forge/newer", "queued"),
    ]


def test_two_pollers_do_not_poll_the_same_watch(releases: HubServer, running: Service) -> None:
    made = watch(running, Kind.AUTHOR, "forge")
    with running.watches.polling(made.id) as mine:
        assert mine
        assert running.watching.poll(made) == []


def test_a_rule_survives_its_record(running: Service) -> None:
    made = new_watch(Kind.AUTHOR, "forge", ["flashnorm"], "smith", allow=["a/*"], tags=["x"], min_age=0.5)
    assert Watch.from_json(json.loads(json.dumps(made.to_json())) | {"later": 1}) == made


@pytest.mark.parametrize(
    ("kind", "target", "to", "filters", "message"),
    [
        (Kind.AUTHOR, "a/b", "smith", {}, "is no user or organisation"),
        (Kind.AUTHOR, "f\u043erge", "smith", {}, "is no user or organisation"),
        (Kind.MODEL, "../up", "smith", {}, "is no Hub id"),
        (Kind.MODEL, "forge/x@", "smith", {}, "is no Hub id"),
        (Kind.COLLECTION, "forge", "smith", {}, "is no collection"),
        (Kind.SEARCH, "", "smith", {}, "a search needs"),
        (Kind.AUTHOR, "forge", "smith/one", {}, "one place for many models"),
        (Kind.AUTHOR, "forge", "smith/{what}", {}, "is no pattern"),
        (Kind.AUTHOR, "forge", "smith/{name} x", {}, "is no destination"),
        (Kind.AUTHOR, "forge", "smith", {"allow": ["a b"]}, "is no pattern of Hub ids"),
        (Kind.AUTHOR, "forge", "smith", {"per_day": 0}, "at least one job"),
        (Kind.AUTHOR, "forge", "smith", {"every": 5.0}, "once a minute at most"),
    ],
)
def test_rules_that_cannot_be_meant(
    kind: Kind, target: str, to: str, filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        new_watch(kind, target, ["flashnorm"], to, **filters)
