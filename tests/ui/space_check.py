"""`make space-check`: what would be deployed, from a clean virtual environment, as the Hub runs it.

The folder is what `deploy` put on a Hub of our own; its requirements are installed by the line that the Hub's
builder uses; it runs on port 7860 with a Space's environment, behind HTTPS at its own name. Not collected by
`make test`: the installation alone takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page, expect

from service.spaces import Wish, deploy
from tests.hub_server import HubServer, User
from tests.ui.space_proxy import https
from tests.ui.space_run import free_port, running
from ui.demo import MODEL
from ui.screenshots import browser

SPACE = "smith/tricksmith"
NAME = "smith-tricksmith.hf.space"
PORT = 7860
SLOW_MS = 120_000


def checked_out(hub: HubServer, folder: Path) -> Path:
    """The Space's repo, as the Hub would check it out."""
    for name, data in hub.repo(f"spaces/{SPACE}").files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def installed(app: Path, venv: Path) -> str:
    """A clean environment, by the line in the build log of Gradio Spaces; its Python."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    sdk = yaml.safe_load((app / "README.md").read_text().split("---")[1])["sdk_version"]
    python = str(venv / "bin" / "python")
    brought = [f"gradio[oauth,mcp]=={sdk}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces"]
    began = time.monotonic()
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-r", app / "requirements.txt", *brought],
        check=True,
        # An index that cannot be reached is passed over at once.
        env={**os.environ, "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "15", "PYTHONPATH": ""},
    )
    print(f"installed in {time.monotonic() - began:.0f} s")  # noqa: T201
    return python


@contextmanager
def opened(url: str, port: int) -> Iterator[Page]:
    """A browser for which the Space's name leads to `port` of this machine."""
    with browser(f"--host-resolver-rules=MAP {NAME}:443 127.0.0.1:{port}") as chromium:
        context = chromium.new_context(ignore_https_errors=True)
        context.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS)
        page = context.new_page()
        page.goto(url)
        yield page
        context.close()


def sign_in(page: Page, name: str) -> None:
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.get_by_label("Who are you?").fill(name)
    page.get_by_role("button", name="Authorize").click()
    expect(page.get_by_role("button", name=f"Logout ({name})")).to_be_visible()


def test_what_would_be_deployed(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_model("forge/tiny-llama", MODEL)
    hub.users["hf_history"] = User("smith", role="fineGrained", scopes={"smith": ("repo.write",)})
    deploy(Wish(SPACE, history="dataset"), {"TRICKSMITH_HISTORY_TOKEN": "hf_history"})
    app = checked_out(hub, tmp_path / "app")
    python = os.environ.get("SPACE_PYTHON") or installed(app, tmp_path / "venv")
    told = hub.runtimes[f"spaces/{SPACE}"].secrets | {"SPACE_HOST": NAME, "OMP_NUM_THREADS": "1"}
    port = free_port()
    with https(NAME, f"http://127.0.0.1:{PORT}", port, tmp_path):
        with (
            running(app, hub, tmp_path / "home", python=python, port=PORT, **told),
            opened(f"https://{NAME}/", port) as page,
        ):
            expect(page.locator("#limits")).to_contain_text("models up to 2")
            page.get_by_label("Model", exact=True).fill("forge/tiny-llama")
            page.get_by_role("button", name="Show plan").click()
            expect(page.locator("#plan")).to_contain_text("proven in float64")
            sign_in(page, "ann")
            assert page.url.startswith(f"https://{NAME}/?model=")
            expect(page.locator("#submit")).to_be_enabled()
            page.locator("#submit").click()
            page.wait_for_url("**/job?id=*")
            job = page.url
            expect(page.locator(".ts-pill")).to_have_text("published")
            expect(page.locator("#outcome")).to_contain_text("Equivalent")
        made = hub.repo("ann/tiny-llama-FlashNorm").files
        assert json.loads(made["evidence.json"])["verdict"] == "equivalent"
        assert json.loads(made["conversion.json"])["source"]["id"] == "forge/tiny-llama"

        # The Hub starts it anew, on a disk that knows nothing.
        assert hub.repo(f"datasets/{SPACE}-history").private
        with (
            running(app, hub, tmp_path / "another-home", python=python, port=PORT, **told),
            opened(job, port) as page,
        ):
            expect(page.locator(".ts-pill")).to_have_text("published")
            expect(page.locator("#outcome")).to_contain_text("Equivalent")
            expect(page.locator("#card h1")).to_be_visible()
    log = "".join((tmp_path / home / "log").read_text() for home in ("home", "another-home"))
    assert "keys restored" in log
    assert "hf_oauth_" not in log
