"""A Hub that fails or is away for a while: the job waits for it, says so, and does everything once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.api import Service
from service.events import Event
from service.jobs import State
from service.settings import Settings
from tests.hub_server import HubServer
from tests.workers.running import Runner, on_event


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Ten minutes of patience in four seconds: the waits are as much shorter."""
    return replace(settings, hub_patience=4.0)


@pytest.fixture
def full_hub(hub: HubServer, small_llama: Path) -> Iterator[HubServer]:
    hub.add_model("forge/new", small_llama)
    yield hub
    hub.faults.clear()


def notes(service: Service, job_id: str) -> list[Event]:
    return [event for event in service.events(job_id) if event.kind == "note"]


@pytest.mark.parametrize(
    ("stage", "fault"),
    [("fetch", {"status": 500}), ("publish", {"status": 503}), ("publish", {"lost": True})],
)
def test_what_passes_is_waited_for(
    full_hub: HubServer, service: Service, run: Runner, stage: str, fault: dict[str, Any]
) -> None:
    """Ten times in a row whatever is asked: with the usual patience that is three minutes."""
    job = service.submit("forge/new", ["flashnorm"], "smith/made")
    entered = on_event(
        service, job, lambda event: event.stage == stage, lambda: full_hub.fail(".", times=10, **fault)
    )
    done = run(job)
    entered.join(10)
    assert (done.state, done.reason, done.attempts) == (State.PUBLISHED, None, 1)
    assert [commit.title.split(" ")[0] for commit in full_hub.repo("smith/made").commits] == [
        "initial",
        "flashnorm",
    ]
    told = notes(service, job.id)
    assert told
    assert all("asked again in" in str(event.text) for event in told)


def test_nobody_listens_for_a_while(full_hub: HubServer, service: Service, run: Runner) -> None:
    job = service.submit("forge/new", ["flashnorm"], "smith/made")
    back = threading.Timer(1.5, full_hub.listen)

    def go() -> None:
        full_hub.hang_up()
        back.start()

    entered = on_event(service, job, lambda event: event.stage == "publish", go)
    done = run(job)
    entered.join(10)
    back.join()
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    assert "cannot be reached" in str(notes(service, job.id)[0].text)


def test_a_wait_for_a_hub_that_fails_ends_with_a_cancel(
    full_hub: HubServer, service: Service, run: Runner
) -> None:
    job = service.submit("forge/new", ["flashnorm"], "smith/made")
    full_hub.fail(".", status=500, times=10_000)
    cancelled: list[float] = []

    def cancel() -> None:
        service.cancel(job.id)
        cancelled.append(time.monotonic())

    entered = on_event(service, job, lambda event: event.kind == "note", cancel)
    done = run(job)
    entered.join(10)
    assert done.state is State.CANCELLED
    assert time.monotonic() - cancelled[0] < 5
    assert "smith/made" not in full_hub.repos


def test_a_hub_that_does_not_come_back_fails_the_job_and_a_retry_goes_on(
    full_hub: HubServer, service: Service, run: Runner
) -> None:
    job = service.submit("forge/new", ["flashnorm"], "smith/made")
    full_hub.fail("/api/", status=500, times=10_000)
    failed = run(job)
    assert (failed.state, failed.cause) == (State.FAILED, "hub")
    assert "the Hub failed on forge/new (status 500)" in str(failed.reason)
    full_hub.faults.clear()
    service.retry(job.id)
    assert run(job).state is State.PUBLISHED
