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
    job = client.predict(str(small_model), ["flashnorm"], out, False, False, "quick", api_name="/submit")
    end = time.monotonic() + 120
    while job["state"] in ("queued", "running") and time.monotonic() < end:
        time.sleep(0.5)
        job = client.predict(job["id"], api_name="/job")
    assert job["state"] == "published", job
    assert client.predict(job["id"], api_name="/evidence")["verdict"] == "equivalent"
    assert "# " in client.predict(job["id"], api_name="/card")
    assert [one["id"] for one in client.predict(5, api_name="/jobs")] == [job["id"]]
    assert client.predict(api_name="/queue") == []

    asked = client.predict(job["id"], "The function", 4, api_name="/compare")
    seen = client.predict(asked["id"], api_name="/comparison")
    while not seen["final"] and time.monotonic() < end:
        time.sleep(0.3)
        seen = client.predict(asked["id"], api_name="/comparison")
    assert seen["state"] == "done", seen
    assert len(seen["source"]["tokens"]) == len(seen["converted"]["tokens"]) == 4
    shown = client.predict("small", ["flashnorm"], api_name="/gallery")
    assert [(one["id"], "perplexity" in one["figures"]) for one in shown] == [(job["id"], True)]
    assert client.predict("nothing of that name", [], api_name="/gallery") == []


def test_explore_and_recipes(client: Client, small_model: Path) -> None:
    seen = client.predict(str(small_model), api_name="/explore")
    assert seen["figures"]["layers"] == 1
    fits = {look["trick"]: look["fits"] for look in seen["tricks"]}
    assert fits["flashnorm"]
    assert fits["slim"]
    assert client.predict(str(small_model), ["slim"], api_name="/plan")["savings"]
    assert set(client.predict(api_name="/recipes")) >= {"quick", "standard", "full"}


def test_a_job_is_cancelled_and_retried(client: Client, model: Path, tmp_path: Path) -> None:
    submit = (str(model), ["flashnorm"], str(tmp_path / "out"), False, False, "standard")
    job = client.predict(*submit, api_name="/submit")
    assert job["evidence_asked"]["recipe"]["name"] == "standard"
    assert job["id"] in [one["id"] for one in client.predict(api_name="/queue")]
    client.predict(job["id"], api_name="/cancel")
    end = time.monotonic() + 120
    while job["state"] != "cancelled" and time.monotonic() < end:
        time.sleep(0.2)
        job = client.predict(job["id"], api_name="/job")
    assert client.predict(job["id"], api_name="/retry")["state"] == "queued"
    client.predict(job["id"], api_name="/cancel")


def test_a_watch_from_beginning_to_end(client: Client) -> None:
    fields = ("model", "forge/thing", ["flashnorm"], "me", 30, 5, False)
    watch = client.predict("", *fields, api_name="/watch_save")
    changed = client.predict(watch["id"], *fields[:5], 7, True, api_name="/watch_save")
    assert (changed["id"], changed["per_day"], changed["private"]) == (watch["id"], 7, True)
    assert client.predict(watch["id"], api_name="/watch_pause")
    listed = client.predict(api_name="/watches")
    assert [(one["id"], one["state"]["paused"]) for one in listed] == [(watch["id"], "by hand")]
    assert not client.predict(watch["id"], api_name="/watch_pause")
    assert client.predict(watch["id"], api_name="/watch_history") == []
    with pytest.raises(Exception, match="Hub"):  # there is none here
        client.predict(watch["id"], api_name="/watch_dry_run")
    assert client.predict(watch["id"], api_name="/watch_remove")
    with pytest.raises(Exception, match="no watch"):
        client.predict(watch["id"], api_name="/watch_history")


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("/job", ("nosuch",), "no job"),
        ("/cancel", ("<script>",), "no job"),
        ("/jobs", (2.5,), "'2.5' is no whole number of jobs"),
        ("/compare", ("nosuch", "The function", 3.7), "'3.7' is no whole number of new tokens"),
        ("/plan", ("/no/such/folder", ["flashnorm"]), "not a folder"),
        ("/plan", ("file:///etc/passwd", ["flashnorm"]), "file:///etc/passwd"),
        (
            "/submit",
            ("gpt2", ["flashnorm:form=" + "x" * 10_000], "a/b", False, False, "quick"),
            "flashnorm:form takes",
        ),
    ],
)
def test_refusals_are_one_line(client: Client, name: str, args: tuple[object, ...], says: str) -> None:
    with pytest.raises(Exception, match=says) as refused:
        client.predict(*args, api_name=name)
    assert "Traceback" not in str(refused.value)
