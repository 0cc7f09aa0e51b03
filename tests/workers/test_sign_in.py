"""A visitor's job: every request to the Hub is made with the visitor's token, which ends with the job."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.api import Service
from service.jobs import Job, State
from service.redis_server import running_redis
from service.settings import Settings
from service.tokens import Grant
from tests.hub_server import HubServer, User
from tricks import BadInput
from workers.forks import Forks
from workers.run import run_job
from workers.worker import Worker


@pytest.fixture
def visitor(hub: HubServer) -> Grant:
    """Somebody who signed in, and the Hub that knows them."""
    hub.users["hf_oauth_visitor"] = User("visitor", expires="2099-01-01T00:00:00.000Z")
    return Grant.of("hf_oauth_visitor", time.time() + 3600, "openid profile contribute-repos gated-repos")


def run(service: Service, settings: Settings, forks: Forks, job: Job) -> Job:
    with running_redis(settings) as url, Worker(url, settings, forks=forks) as worker:
        attempt = worker.this_job(job.id)
        assert attempt is not None
        done = run_job(attempt, worker)
    assert done is not None
    return done


def test_a_visitors_job_uses_the_visitors_token_alone(
    hub: HubServer,
    visitor: Grant,
    service: Service,
    settings: Settings,
    forks: Forks,
    small_llama: Path,
) -> None:
    hub.add_model("forge/new", small_llama)
    job = service.submit("forge/new", ["flashnorm"], grant=visitor)
    done = run(service, settings, forks, job)
    assert (done.state, done.reason) == (State.PUBLISHED, None)
    assert hub.repo("visitor/new-FlashNorm").files["conversion.json"]
    # The large files lie elsewhere, where no token is sent.
    asked = {r.user for r in hub.requests if not r.path.startswith(("/cdn/", "/lfs/"))}
    assert asked == {"visitor"}, [(r.method, r.path) for r in hub.requests if r.user == "smith"]
    with pytest.raises(BadInput, match="has expired"):
        service._vault.token(done)
    written = [path for path in settings.data.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hf_oauth" in path.read_bytes()]


def test_a_job_whose_sign_in_ended_fails_and_takes_no_other_token(
    hub: HubServer,
    visitor: Grant,
    service: Service,
    settings: Settings,
    forks: Forks,
    small_llama: Path,
) -> None:
    hub.add_model("forge/new", small_llama)
    job = service.submit("forge/new", ["flashnorm"], grant=visitor)
    service._vault.forget(job.id)
    hub.requests.clear()
    done = run(service, settings, forks, job)
    assert done.state is State.FAILED
    assert done.reason is not None
    assert "the sign-in of visitor for this job has expired; sign in and submit again" in done.reason
    assert hub.requests == []
