"""The process beside the workers: it follows the watches, and stops when it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.api import Service
from service.deciding import Outcome
from service.queue import send_look
from service.settings import Settings
from service.watches import Kind, new_watch
from tests.hub_server import HubServer
from workers.watch_tasks import poll_due


def test_beat_takes_a_webhooks_hint_and_makes_a_job(
    hub: HubServer, service: Service, settings: Settings, small_llama: Path
) -> None:
    hub.add_model("forge/new", small_llama)
    service.watches.add(new_watch(Kind.MODEL, "forge/new", ["flashnorm"], "smith"))
    _, app = service._connect()
    send_look(app, "forge/new")
    command = [sys.executable, "-m", "workers.main", "beat", "--data", str(settings.data)]
    log = settings.data.parent / "beat.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ)) as beat,
    ):
        try:
            deadline = time.monotonic() + 60
            while not service.jobs() and time.monotonic() < deadline:
                time.sleep(0.1)
            # It is no worker: whoever asks for one must not be told that there is.
            assert not app.control.ping(timeout=0.5)
        finally:
            beat.terminate()
            assert beat.wait(30) == 0, log.read_text()
    (job,) = service.jobs()
    assert job.to == "smith/new-FlashNorm"


def test_a_watch_that_fails_does_not_keep_the_others(
    hub: HubServer, service: Service, small_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_model("forge/new", small_llama)
    gone = new_watch(Kind.COLLECTION, "forge/gone-1", ["flashnorm"], "smith")
    good = new_watch(Kind.MODEL, "forge/new", ["flashnorm"], "smith")
    for watch in (gone, good):
        service.watches.add(watch)
    assert poll_due(service) == 2
    assert service.watches.seen(good.id, "forge/new")["outcome"] == Outcome.QUEUED
    assert "forge/gone-1 is not on the Hub" in caplog.text
    assert poll_due(service) == 0  # not before their time
