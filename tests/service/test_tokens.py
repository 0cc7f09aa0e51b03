"""A visitor's token: narrow, sealed, bound to its job, gone when that ends, never another in its place."""

from __future__ import annotations

import dataclasses
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from service.api import Service
from service.jobs import Job
from service.settings import Settings
from service.tokens import Grant, Vault, check_grant
from tests.hub_server import HubServer, User
from tricks import BadInput

SCOPES = "openid profile contribute-repos gated-repos"
HOUR = 3600.0


def grant(scope: str = SCOPES, seconds: float = HOUR, token: str = "hf_oauth_visitor") -> Grant:
    return Grant.of(token, time.time() + seconds, scope)


@pytest.mark.parametrize(
    ("given", "pr", "said"),
    [
        (grant(SCOPES + " write-repos manage-repos"), False, r"may do more .*\(manage-repos, write-repos\)"),
        (grant(SCOPES + " inference-api"), False, r"may do more .*\(inference-api\)"),
        (
            grant("openid profile"),
            False,
            "may not create repos; sign in again and grant contribute",
        ),
        (grant(seconds=-1), False, "has expired, or is about to; sign in again"),
        (grant(seconds=60), False, "has expired, or is about to"),
        (grant(), True, "may not open pull requests elsewhere"),
    ],
)
def test_a_sign_in_that_will_not_do_is_refused(given: Grant, pr: bool, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        check_grant(given, pr=pr)
    assert given.token not in str(caught.value)


def test_a_narrow_sign_in_is_enough() -> None:
    check_grant(grant())
    check_grant(grant("contribute-repos"))
    assert "visitor" not in repr(grant())


@pytest.fixture
def connected(tmp_path: Path, empty_redis: str) -> tuple[str, Settings]:
    return empty_redis, Settings(data=tmp_path / "data")


def job(job_id: str = "a1", user: str | None = "visitor") -> Job:
    values: dict[str, Any] = {"model": "m", "tricks": [], "to": "t", "state": "queued", "created": 0.0}
    return Job(id=job_id, user=user, **values)


def test_a_token_is_sealed_for_its_job_alone(connected: tuple[str, Settings]) -> None:
    url, settings = connected
    vault = Vault(url, settings)
    vault.keep("a1", grant())
    assert vault.token(job("a1")) == "hf_oauth_visitor"
    assert vault.token(job("a1", user=None)) is None
    raw = redis.Redis.from_url(url)
    assert b"visitor" not in b"".join(raw.get(key) or b"" for key in raw.keys("*:token"))
    raw.copy("tricksmith:job:a1:token", "tricksmith:job:b2:token")
    with pytest.raises(BadInput, match="cannot open the job's sign-in"):
        vault.token(job("b2"))
    other = dataclasses.replace(settings, token_key="ab" * 32)
    with pytest.raises(BadInput, match="give every machine the same TRICKSMITH_TOKEN_KEY"):
        Vault(url, other).token(job("a1"))
    assert stat.S_IMODE((settings.data / "token.key").stat().st_mode) == 0o600
    assert "abab" not in repr(other)


def test_a_token_expires_with_its_sign_in(connected: tuple[str, Settings]) -> None:
    vault, raw = Vault(*connected), redis.Redis.from_url(connected[0])
    vault.keep("a1", grant(seconds=HOUR))
    assert HOUR - 60 < raw.ttl("tricksmith:job:a1:token") <= HOUR
    raw.pexpire("tricksmith:job:a1:token", 1)  # an hour later
    while raw.exists("tricksmith:job:a1:token"):
        time.sleep(0.001)
    with pytest.raises(
        BadInput, match="sign-in of visitor for this job has expired; sign in and submit again"
    ):
        vault.token(job("a1"))
    vault.keep("a1", grant())
    vault.forget("a1")
    with pytest.raises(BadInput, match="has expired"):
        vault.token(job("a1"))


def test_a_job_uses_its_users_token_and_no_other(
    hub: HubServer, running: Service, small_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hub.users["hf_oauth_visitor"] = User("visitor", expires="2099-01-01T00:00:00.000Z")
    hub.add_model("forge/new", small_llama)
    made = running.submit("forge/new", ["flashnorm"], grant=grant())
    assert (made.to, made.user) == ("visitor/new-FlashNorm", "visitor")
    assert {r.user for r in hub.requests} == {"visitor"}
    assert "hf_oauth" not in str(made.to_json()) + caplog.text
    assert running._vault.token(made) == "hf_oauth_visitor"
    running.cancel(made.id)
    with pytest.raises(BadInput, match="has expired"):
        running._vault.token(made)
    with pytest.raises(BadInput, match="may not write to smith"):
        running.submit("forge/new", ["flashnorm"], "smith/mine", grant=grant())


def test_without_a_destination_a_new_repo_is_named_after_the_source(
    hub: HubServer, running: Service, small_llama: Path
) -> None:
    hub.add_model("forge/Some-Model.v1", small_llama)
    assert running.submit("forge/Some-Model.v1", ["flashnorm"]).to == "smith/Some-Model.v1-FlashNorm"
