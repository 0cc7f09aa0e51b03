"""The door of the web side: large bodies and too many requests are turned away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ui.door import Door, Rates
from ui.web import _who


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


APP = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
def test_a_body_has_a_largest_size(size: int, status: int) -> None:
    client = TestClient(Door(APP, None, largest=100))
    assert client.post("/", content=b"x" * size).status_code == status


def test_a_body_without_a_length_is_cut_off_too() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 50

    client = TestClient(Door(APP, None, largest=100), raise_server_exceptions=False)
    assert client.post("/", content=pieces()).status_code != 200


def test_a_client_that_asks_too_often_waits_while_others_do_not() -> None:
    now = [0.0]
    rates = Rates(1.0, 3.0, lambda: now[0])
    assert [rates.allows("a") for _ in range(5)] == [True, True, True, False, False]
    assert rates.allows("b")
    now[0] += 2.0
    assert [rates.allows("a") for _ in range(3)] == [True, True, False]


def test_too_many_requests_are_told_when_to_come_back() -> None:
    client = TestClient(Door(APP, Rates(0.001, 1.0)))
    assert client.get("/").status_code == 200
    refused = client.get("/")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


def test_users_behind_one_proxy_have_each_a_rate_of_their_own() -> None:
    """As uvicorn, Gradio's sign-in and the door stand before each other: only a trusted proxy is believed."""

    def client(trusted: str) -> TestClient:
        door = Door(APP, Rates(0.001, 1.0), who=_who)
        return TestClient(ProxyHeadersMiddleware(door, trusted), client=("10.0.0.7", 1))

    def ask(client: TestClient, told: str) -> int:
        return client.get("/", headers={"x-forwarded-for": told}).status_code

    behind = client("10.0.0.0/8")
    assert [ask(behind, told) for told in ("1.1.1.1", "2.2.2.2", "1.1.1.1")] == [200, 200, 429]
    # What a client puts in front of the proxy's own word is not believed.
    assert ask(behind, "3.3.3.3, 1.1.1.1") == 429
    # Nobody said that this one is a proxy: it cannot make up clients.
    stranger = client("127.0.0.1")
    assert [ask(stranger, told) for told in ("4.4.4.4", "5.5.5.5")] == [200, 429]


def test_a_signed_in_user_is_counted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTH_CLIENT_ID", "app")

    def scope(name: str | None, host: str) -> dict[str, Any]:
        told = {
            "access_token": "hf_x",
            "expires_at": time.time() + 60,
            "scope": "",
            "userinfo": {"preferred_username": name},
        }
        session = {"oauth_info": told} if name else {}
        return {"type": "http", "client": (host, 1), "session": session, "headers": []}

    assert _who(scope("ann", "1.1.1.1")) == _who(scope("ann", "2.2.2.2"))
    assert len({_who(scope(name, "1.1.1.1")) for name in ("ann", "bob", None)}) == 3
