"""Others' private jobs, asked for over HTTP by whoever is signed in, or is not, or says that they are."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import itsdangerous
import pytest

from benchmarks.chaos.cluster import free_port
from service.api import Service
from service.jobs import State
from service.settings import Settings
from ui.web import launch

# Gradio watches a Space's files for changes in a thread that needs a package of Spaces alone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SECRET = "the app's secret"
KEY = hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()  # with which Gradio signs sessions


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(Settings(data=tmp_path_factory.mktemp("data"))) as service:
        yield service


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[httpx2.Client]:
    """The pages as they are on a Space: visitors sign in, and their session is in a signed cookie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYSTEM", "spaces")
        patch.setenv("SPACE_ID", "smith/tricksmith")
        patch.setenv("OAUTH_CLIENT_ID", "app")
        for name in ("CLIENT_ID", "CLIENT_SECRET", "SCOPES"):
            patch.setattr(f"gradio.oauth.OAUTH_{name}", SECRET)
        patch.setattr("gradio.oauth.OPENID_PROVIDER_URL", "http://127.0.0.1:9")
        port = free_port()
        app = launch(service, "127.0.0.1", port)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
        app.close(verbose=False)


def cookie(name: str, key: str = KEY) -> dict[str, str]:
    """A signed-in visitor's."""
    told = {
        "access_token": f"hf_{name}",
        "expires_at": time.time() + 3600,
        "scope": "openid profile manage-repos",
        "userinfo": {"preferred_username": name},
    }
    packed = base64.b64encode(json.dumps({"oauth_info": told}).encode())
    return {"Cookie": f"session={itsdangerous.TimestampSigner(key).sign(packed).decode()}"}


def call(page: httpx2.Client, action: str, job_id: str, headers: dict[str, str]) -> tuple[bool, str]:
    """Whether an endpoint for programs did it, and what it said."""
    asked = page.post(f"/gradio_api/call/{action}", json={"data": [job_id]}, headers=headers)
    said = page.get(f"/gradio_api/call/{action}/{asked.json()['event_id']}", headers=headers).text
    return "event: complete" in said, said


@pytest.mark.parametrize(
    "headers",
    [{}, cookie("bob"), cookie("ann", key="another key"), {"Cookie": "session=e30=.x.y"}],
    ids=["nobody", "another", "forged", "broken"],
)
def test_anothers_private_job_is_neither_shown_nor_changed(
    page: httpx2.Client, service: Service, small_llama: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    to = str(tmp_path / "secret-place")
    job = service.submit(str(small_llama), ["flashnorm"], to, user="ann", private=True)
    shown = page.get("/live/job", params={"id": job.id}, headers=headers).text
    assert "secret-place" not in shown
    assert "no job" in shown
    assert "secret-place" not in page.get("/live/queue", headers=headers).text
    for action in ("job", "evidence", "card", "cancel", "retry"):
        done, said = call(page, action, job.id, headers)
        assert not done
        assert "secret-place" not in said
    assert service.job(job.id).state is State.QUEUED
    # And its owner may do all that.
    assert "secret-place" in page.get("/live/job", params={"id": job.id}, headers=cookie("ann")).text
    assert call(page, "cancel", job.id, cookie("ann"))[0]
    assert service.job(job.id).state is State.CANCELLED


def test_who_is_not_signed_in_converts_nothing(page: httpx2.Client, service: Service) -> None:
    before = len(service.jobs())
    asked = page.post(
        "/gradio_api/call/submit", json={"data": ["forge/small", ["flashnorm"], "smith/x", False, False]}
    )
    said = page.get(f"/gradio_api/call/submit/{asked.json()['event_id']}").text
    assert "event: complete" not in said
    assert len(service.jobs()) == before


def test_no_page_tells_a_visitors_token(page: httpx2.Client) -> None:
    for path in ("/", "/jobs", "/job", "/config", "/gradio_api/info", "/live/queue"):
        assert "hf_ann" not in page.get(path, headers=cookie("ann")).text
