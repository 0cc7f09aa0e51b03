"""A visitor's job: every request to the Hub is made with the visitor's token, which ends with the job."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from service.api import Service
from service.jobs import State
from service.settings import Settings
from service.tokens import Grant
from tests.hub_server import HubServer, User
from tests.workers.running import Runner, in_verify, on_event
from tricks import BadInput
from workers.forks import Forks


@pytest.fixture
def visitor(hub: HubServer) -> Grant:
    """Somebody who signed in, and the Hub that knows them."""
    hub.users["hf_oauth_visitor"] = User("visitor", expires="2099-01-01T00:00:00.000Z")
    return Grant.of("hf_oauth_visitor", time.time() + 3600, "openid profile contribute-repos gated-repos")


def test_a_visitors_job_uses_the_visitors_token_alone(
    hub: HubServer,
    visitor: Grant,
    service: Service,
    settings: Settings,
    small_llama: Path,
    run: Runner,
) -> None:
    hub.add_model("forge/new", small_llama)
    job = service.submit("forge/new", ["flashnorm"], grant=visitor)
    done = run(job)
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    assert hub.repo("visitor/new-FlashNorm").files["conversion.json"]
    # The large files lie elsewhere, where no token is sent.
    asked = {r.user for r in hub.requests if not r.path.startswith(("/cdn/", "/lfs/"))}
    assert asked == {"visitor"}, [(r.method, r.path) for r in hub.requests if r.user == "smith"]
    with pytest.raises(BadInput, match="has expired"):
        service._vault.token(done)
    written = [path for path in settings.data.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hf_oauth" in path.read_bytes()]


def test_the_process_that_reads_weights_is_never_told_a_token(
    hub: HubServer,
    visitor: Grant,
    service: Service,
    forks: Forks,
    small_llama: Path,
    run: Runner,
) -> None:
    """In the midst of a job: all that the kernel shows of its process, and all that lies where it stands."""
    hub.add_model("forge/new", small_llama)
    job = service.submit("forge/new", ["flashnorm"], grant=visitor)
    shown: dict[str, bytes] = {}

    def look() -> None:
        (child,) = psutil.Process(forks.pid).children()
        for process in (psutil.Process(forks.pid), child):
            proc = Path(f"/proc/{process.pid}")
            for name in ("environ", "cmdline"):
                shown[f"{process.pid} {name}"] = (proc / name).read_bytes()
        for number in os.listdir(proc / "fd"):
            with suppress(FileNotFoundError):  # the child works on: it closes and renames meanwhile
                shown[f"descriptor {number}"] = os.readlink(proc / "fd" / number).encode()
        for folder, _, names in os.walk(child.cwd()):
            for name in names:
                with suppress(FileNotFoundError):
                    shown[f"{folder}/{name}"] = Path(folder, name).read_bytes()

    looked = on_event(service, job, in_verify, look)
    done = run(job)
    looked.join(10)
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    assert any("checkpoint.json" in name for name in shown)
    tokens = (b"hf_oauth_visitor", b"hf_smith", b"hf_abcdefgh")  # the visitor's, the operator's, the tests'
    assert not [name for name, data in shown.items() if any(token in data for token in tokens)]
    # Nor can it ask for one: no connection to Redis, to the Hub, or to anything.
    assert not [name for name, data in shown.items() if data.startswith(b"socket:")]


def test_a_job_whose_sign_in_ended_fails_and_takes_no_other_token(
    hub: HubServer,
    visitor: Grant,
    service: Service,
    settings: Settings,
    small_llama: Path,
    run: Runner,
) -> None:
    hub.add_model("forge/new", small_llama)
    job = service.submit("forge/new", ["flashnorm"], grant=visitor)
    service._vault.forget(job.id)
    hub.requests.clear()
    done = run(job)
    assert done.state is State.FAILED
    assert done.reason is not None
    assert "the sign-in of visitor for this job has expired; sign in and submit again" in done.reason
    assert hub.requests == []
