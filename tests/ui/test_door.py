"""The door of the web side: large bodies and too many requests are turned away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.door import Door, Rates


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
