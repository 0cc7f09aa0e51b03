"""The endpoints for programs, by the real client against a real `tricksmith serve`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from ui.screenshots import served


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(tmp_path_factory.mktemp("data")) as url:
        yield Client(url, verbose=False)


def test_a_conversion_by_program(client: Client, small_model: Path, tmp_path: Path) -> None:
    plan = client.predict(str(small_model), ["flashnorm"], api_name="/plan")
    assert plan["fits"]
    assert plan["preflight"]["bytes"]["download"] == 0
    out = str(tmp_path / "out")
    job = client.predict(str(small_model), ["flashnorm"], out, False, False, api_name="/submit")
    end = time.monotonic() + 120
    while job["state"] in ("queued", "running") and time.monotonic() < end:
        time.sleep(0.5)
        job = client.predict(job["id"], api_name="/job")
    assert job["state"] == "published", job
    assert client.predict(job["id"], api_name="/evidence")["verdict"] == "equivalent"
    assert "# " in client.predict(job["id"], api_name="/card")
    assert [one["id"] for one in client.predict(5, api_name="/jobs")] == [job["id"]]


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("/job", ("nosuch",), "no job"),
        ("/cancel", ("<script>",), "no job"),
        ("/plan", ("/no/such/folder", ["flashnorm"]), "not a folder"),
        ("/plan", ("file:///etc/passwd", ["flashnorm"]), "file:///etc/passwd"),
        (
            "/submit",
            ("gpt2", ["flashnorm:form=" + "x" * 10_000], "a/b", False, False),
            "flashnorm:form takes",
        ),
    ],
)
def test_refusals_are_one_line(client: Client, name: str, args: tuple[object, ...], says: str) -> None:
    with pytest.raises(Exception, match=says) as refused:
        client.predict(*args, api_name=name)
    assert "Traceback" not in str(refused.value)
