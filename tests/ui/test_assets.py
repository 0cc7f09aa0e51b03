"""The files that a page comes with: named at once, all of them and no others, and answered from memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.assets import Assets
from ui.preload import Frontend

PAGE = "<html><head><title>x</title></head><body></head></body></html>"
SCRIPT = "let a = 1;" * 100
NEEDED = ["a-1.js", "a-1.css", "b-2.css", "gone-3.css"]
_NAMED = re.compile(
    r'<link rel="(?:modulepreload" crossorigin|stylesheet" disabled) href="\./assets/([^"]+)">'
)

_OWN = re.compile(r'<(?:script type="module"|link rel="stylesheet")(?: crossorigin)? \w+="\./assets/([^"]+)"')


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "a-1.js").write_text(SCRIPT)
    (folder / "a-1.css").write_text("a {}")
    (folder / "b-2.css").write_text("b {}")
    (folder / "a-1.map").write_text("not for browsers")
    (tmp_path / "outside.js").write_text("secret")

    async def rest(request: Request) -> Response:
        return HTMLResponse(PAGE) if request.url.path in ("/", "/other") else Response("handed on", 404)

    app = Starlette(routes=[Route("/{path:path}", rest)])
    return TestClient(Assets(app, folder, lambda path: NEEDED if path == "/" else []))


@pytest.mark.parametrize("encoding", ["br", "identity"])
def test_a_file_is_answered_from_memory_and_may_be_kept_for_ever(
    client: TestClient, tmp_path: Path, encoding: str
) -> None:
    for _ in range(2):
        answer = client.get("/assets/a-1.js", headers={"accept-encoding": encoding})
        assert (answer.status_code, answer.text) == (200, SCRIPT)
        assert answer.headers.get("content-encoding", "identity") == encoding
        assert "immutable" in answer.headers["cache-control"]
        (tmp_path / "assets" / "a-1.js").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name",
    ["none.js", "../outside.js", "%2e%2e/outside.js", "..%2foutside.js", "..%5coutside.js", "a-1.map", ""],
)
def test_nothing_else_is_answered(client: TestClient, name: str) -> None:
    answer = client.get(f"/assets/{name}")
    assert (answer.status_code, answer.text) == (404, "handed on")


@pytest.mark.parametrize("encoding", ["br", "identity"])
def test_a_page_is_told_of_its_files_and_others_stay_as_they_are(client: TestClient, encoding: str) -> None:
    shown = client.get("/", headers={"accept-encoding": encoding}).text
    links = "".join(re.findall("<link [^>]*>", shown))
    assert shown == PAGE.replace("</head>", f"{links}</head>", 1)
    assert set(_NAMED.findall(shown)) == {"a-1.js", "a-1.css", "b-2.css"}
    assert client.get("/other").text == PAGE
    # Styles come as one file.
    found = re.search(r'<link rel="stylesheet" href="\./(assets/page-\w+\.css)">', shown)
    assert found is not None
    assert client.get(f"/{found[1]}").text == "a {}\nb {}"


def test_a_frontend_that_is_built_otherwise_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="./other.js"></script>')
    assert Frontend(tmp_path).needed(["html"]) == []


def test_pages_name_the_files_that_they_open_with_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    from ui.screenshots import CHROMIUM, browser, served

    if not CHROMIUM.exists():
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with served(tmp_path) as url, browser() as chromium:
        for path in ("/", "/watches", "/job?id=x"):
            html = httpx.get(url + path).text
            own = set(_OWN.findall(html))
            named = set(_NAMED.findall(html))
            asked: set[str] = set()
            page = chromium.new_page()
            page.on("request", lambda request, asked=asked: asked.add(request.url.partition("/assets/")[2]))
            # As Gradio's own page would ask for them.
            bare = re.sub(r'<link [^>]*page-\w+\.css">', "", _NAMED.sub("", html))
            page.route(
                url + path, lambda route, _, bare=bare: route.fulfill(body=bare, content_type="text/html")
            )
            page.goto(url + path)
            end = time.monotonic() + 60
            while named - asked and time.monotonic() < end:
                page.wait_for_timeout(200)
            page.wait_for_timeout(1000)  # for more than is named
            assert asked - own - {""} == named, path
            page.unroute_all()
            asked.clear()
            page.goto(url + path)
            page.locator(".ts-brand").wait_for()
            page.close()
            assert {name for name in asked if name.endswith(".css")} <= own, path
