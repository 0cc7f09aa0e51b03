"""The pictures in the README, taken from the real pages: `python -m ui.screenshots`.

Needs Chromium and the development requirements; the browser tests drive the pages through the same two
context managers.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ui.demo import MODEL, ROOT

CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
IMAGES = ROOT / "docs" / "images"
_QUIET = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
_FLAGS = [f"--{flag}" for flag in ("no-sandbox", "disable-gpu", "disable-quic", *_QUIET)]
_START_S = 60
_JOB_MS = 120_000
_SETTLE_MS = 600  # for what fades in


@contextmanager
def served(data: Path, cwd: Path = ROOT, port: int | None = None) -> Iterator[str]:
    """Run `tricksmith serve` on this data folder in a process of its own; yields its address.

    Relative folders that are typed into its page are taken from `cwd`; `port` is a free one by default.
    """
    port = port or free_port()
    env = {**os.environ, "TRICKSMITH_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    env.pop("REDIS_URL", None)
    command = [sys.executable, "-m", "ui.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if str(port) not in line:
            raise RuntimeError(f"tricksmith serve did not start: {line!r}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(_START_S)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    if code != 0:
        raise RuntimeError(f"tricksmith serve ended with {code}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """A Chromium without a window; `flags` beside the usual ones."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=[*_FLAGS, *flags])
        try:
            yield chromium
        finally:
            chromium.close()


def take(page: Page, url: str, images: Path) -> None:
    """Drive one conversion in the browser and picture every page on the way."""
    images.mkdir(parents=True, exist_ok=True)

    def picture(name: str, height: int = 720) -> None:
        page.set_viewport_size({"width": 1280, "height": height})
        page.mouse.move(0, 0)
        page.evaluate("() => window.scrollTo(0, 0)")
        page.wait_for_timeout(_SETTLE_MS)
        page.screenshot(path=images / f"{name}.png")

    page.goto(url)
    page.locator("#model input").wait_for()
    picture("explore")
    page.get_by_label("Model", exact=True).fill(f"./models/{MODEL.name}")
    page.get_by_label("Destination").fill(f"./out/{MODEL.name}-flashnorm")
    page.get_by_role("button", name="Show plan").click()
    page.wait_for_selector(".ts-plan", timeout=_JOB_MS)
    page.locator("#submit:enabled").wait_for(timeout=_JOB_MS)
    page.locator('.ts-card[aria-busy="true"]').first.wait_for(state="detached", timeout=_JOB_MS)
    picture("plan", 1060)
    page.get_by_role("button", name="Convert").click()
    page.wait_for_url("**/job?id=*")
    page.wait_for_selector("#card h1", timeout=_JOB_MS)
    page.locator("#picture img").wait_for(timeout=_JOB_MS)
    picture("job", 1060)
    page.get_by_role("link", name="side by side").click()
    page.get_by_label("New tokens").first.fill("24")
    page.locator("#compare:enabled").click(timeout=_JOB_MS)
    page.get_by_text("Both wrote the same").wait_for(timeout=_JOB_MS)
    picture("compare", 1060)
    page.goto(f"{url}/jobs")
    page.locator("#jobs tbody tr").first.wait_for()
    picture("queue")
    page.goto(f"{url}/gallery")
    page.locator("#gallery article").first.wait_for()
    picture("gallery")
    page.goto(f"{url}/watches")
    page.get_by_label("Its name").fill("HuggingFaceTB")
    page.get_by_label("Destination").fill("my-name")
    page.get_by_role("button", name="Save").click()
    page.locator("#watches tbody tr").wait_for(timeout=_JOB_MS)
    picture("watches", 1060)


def main() -> None:
    """Take all pictures, in a folder of their own so that no path of this machine is in them."""
    with tempfile.TemporaryDirectory(prefix="tricksmith-") as folder, browser() as chromium:
        home = Path(folder)
        shutil.copytree(MODEL, home / "models" / MODEL.name)
        (home / "out").mkdir()
        with served(home / "data", cwd=home) as url:
            page = chromium.new_page(viewport={"width": 1280, "height": 720}, device_scale_factor=1.5)
            take(page, url, IMAGES)


if __name__ == "__main__":
    main()
