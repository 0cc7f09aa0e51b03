"""Other people's jobs and ended sign-ins, over HTTP and by program: nothing is leaked, nothing is lost."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from itsdangerous import TimestampSigner
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.testclient import TestClient

from service.api import Service
from service.jobs import Job
from service.settings import Settings
from ui.live import add_live
from ui.pages import compare, exploring, job, options, watches
from ui.pages.api import Endpoints, asked
from ui.pages.api_watches import WatchEndpoints
from ui.pages.live import FRESH_S, Live
from ui.pages.visitor import visitor

KEY = "a secret of this test's"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("OAUTH_CLIENT_ID", "tricksmith")
    with Service(Settings(data=tmp_path / "data")) as service:
        yield service


@pytest.fixture
def secret(service: Service, small_model: Path, tmp_path: Path) -> Job:
    """A private job of Ann's."""
    return service.submit(str(small_model), ["flashnorm"], str(tmp_path / "out"), private=True, user="ann")


def session(name: str, seconds: float = 3600) -> dict[str, Any]:
    info = {"access_token": "hf_oauth_x", "expires_at": time.time() + seconds, "scope": "contribute-repos"}
    return {"oauth_info": {**info, "userinfo": {"preferred_username": name}}}


def request(told: dict[str, Any], query: str = "") -> gr.Request:
    scope = {"type": "http", "session": told, "query_string": query.encode(), "headers": []}
    return gr.Request(Request(scope))


def test_a_private_job_does_not_exist_for_others_over_http(service: Service, secret: Job) -> None:
    app = FastAPI()
    add_live(app, Live(service))
    app.add_middleware(SessionMiddleware, secret_key=KEY)

    def client(told: dict[str, Any]) -> TestClient:
        made = TestClient(app)
        signed = TimestampSigner(KEY).sign(base64.b64encode(json.dumps(told).encode())).decode()
        made.cookies.set("session", signed)
        return made

    ann, eve, nobody = client(session("ann")), client(session("eve")), client({})
    address = f"/live/job?id={secret.id}"
    assert secret.model.rpartition("/")[2] in ann.get(address).text
    for other in (eve, nobody, client(session("ann", -1))):
        for path in (address, address.replace("job", "papers"), "/live/queue"):
            assert secret.model.rpartition("/")[2] not in other.get(path).text
        assert "there is no job" in other.get(address).text
        assert other.get(address.replace("job", "picture")).status_code == 404
    # What Ann's page brought into memory is not Eve's either.
    assert ann.get(address).status_code == 200
    assert "there is no job" in eve.get(address).text


def test_only_whose_job_it_is_sees_the_buttons(service: Service, small_model: Path, tmp_path: Path) -> None:
    public = service.submit(str(small_model), ["flashnorm"], str(tmp_path / "out"), user="ann")
    live = Live(service)

    def can(name: str) -> str:
        told = json.loads(live.job(public.id, visitor(request(session(name)))).body)
        return str(told["can"])

    assert (can("ann"), can("eve")) == ("cancel", "")
    service.cancel(public.id, viewer="ann")
    time.sleep(FRESH_S + 0.1)
    assert (can("ann"), can("eve")) == ("retry", "")


@pytest.mark.parametrize("name", ["job", "evidence", "card", "cancel", "retry"])
def test_a_private_job_does_not_exist_for_others_by_program(service: Service, secret: Job, name: str) -> None:
    endpoint = getattr(Endpoints(service, folders=False), name)
    with pytest.raises(gr.Error, match="there is no job"):
        endpoint(secret.id, request(session("eve")))
    with pytest.raises(gr.Error, match="there is no job"):
        Endpoints(service, folders=False).compare(secret.id, "x", 1, request(session("eve")))


def test_lists_leave_out_what_is_private(service: Service, secret: Job) -> None:
    points = Endpoints(service, folders=False)
    for told in (session("eve"), {}):
        assert points.jobs(50, request(told)) == points.queue(request(told)) == []
    assert [each["id"] for each in points.queue(request(session("ann")))] == [secret.id]


def test_others_may_look_at_a_public_job_and_change_nothing(
    service: Service, small_model: Path, tmp_path: Path
) -> None:
    public = service.submit(str(small_model), ["flashnorm"], str(tmp_path / "out"), user="ann")
    points = Endpoints(service, folders=False)
    assert points.job(public.id, request(session("eve")))["id"] == public.id
    for action in (points.cancel, points.retry):
        with pytest.raises(gr.Error, match="somebody else's"):
            action(public.id, request(session("eve")))
    pressed = job.Handlers(service).cancel(request(session("eve"), f"id={public.id}"))
    assert "somebody else" in pressed
    assert not service.job(public.id).cancel


def test_watches_are_the_operators(service: Service) -> None:
    points = WatchEndpoints(service, asked)
    calls = [
        lambda who: points.watches(who),
        lambda who: points.watch_save("", "author", "ann", ["flashnorm"], "ann", 15, 1, False, who),
        lambda who: points.watch_remove("x", who),
    ]
    for call in calls:
        with pytest.raises(gr.Error, match="operator"):
            call(request(session("eve")))
    actions = watches.Handlers(service).actions
    made = actions.save("", "author", "secret-author", ["flashnorm"], "me", 15, 1, False)
    for who in (session("eve"), session("ann", -1), {}):
        shown = watches.Handlers(service).opened(request(who))
        assert "operator" in shown[1]
        assert "secret-author" not in str(shown)
        assert "secret-author" not in str(watches.Handlers(service).load(made.id, request(who)))


def test_a_watch_that_is_changed_on_the_page_keeps_the_options_of_its_tricks(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OAUTH_CLIENT_ID")  # the operator's own machine
    on, us = watches.Handlers(service), request({})
    made = on.actions.save("", "author", "ann", ["flashnorm:form=strict", "slim"], "me", 15, 1, False)
    on.save(made.id, "author", "ann", ["flashnorm", "precompute"], "me", 30, 2, False, us)
    (changed,) = service.watches.all()
    assert (changed.id, changed.per_day) == (made.id, 2)
    assert sorted(changed.tricks) == ["flashnorm:form=strict", "precompute"]


def test_a_sign_in_that_ends_midway_loses_nothing_and_uses_no_other_token(
    service: Service, secret: Job
) -> None:
    ended = request(session("ann", -1))
    handlers = exploring.Handlers(service, False, options.Options({}, ()))
    planned = "?model=forge%2Fsmall&trick=flashnorm"
    fields = (planned, "forge/small", ["flashnorm"], "ann/x", False, False, "quick")
    made, said = handlers.submit(*fields, ended)
    assert (made, "sign-in has ended" in said) == ("", True)
    address, said = compare.Handlers(service).ask(secret.id, "x", 1, ended)
    assert (address, "sign-in has ended" in said) == ("", True)
    with pytest.raises(gr.Error, match="sign-in has ended"):
        Endpoints(service, False).submit("forge/small", ["flashnorm"], "ann/x", False, False, "quick", ended)
    assert [each.id for each in service.jobs()] == [secret.id]
