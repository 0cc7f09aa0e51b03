"""Runs the folder of a Space as the Hub would: its environment, its port, its sign-in, and no token."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.hub_server import HubServer

KEY = "5a" * 32
START_S = 90.0


def environment(hub: HubServer, home: Path, port: int) -> dict[str, str]:
    """What a Space's process sees (huggingface.co/docs/hub/spaces-overview, spaces-oauth)."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "TZ", "OMP_NUM_THREADS") if name in os.environ
    }
    return kept | {
        "HOME": str(home),
        "SYSTEM": "spaces",
        "SPACE_ID": "smith/tricksmith",
        "SPACE_AUTHOR_NAME": "smith",
        "SPACE_REPO_NAME": "tricksmith",
        "SPACE_TITLE": "Tricksmith",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "OAUTH_CLIENT_ID": hub.client[0],
        "OAUTH_CLIENT_SECRET": hub.client[1],
        "OAUTH_SCOPES": "openid profile contribute-repos gated-repos",
        "OPENID_PROVIDER_URL": hub.endpoint,
        "TRICKSMITH_TOKEN_KEY": KEY,
        # Our Hub in place of the real one.
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    folder: Path,
    hub: HubServer,
    home: Path,
    *,
    python: str = sys.executable,
    port: int = 0,
    **more: str,
) -> Iterator[str]:
    """Run `python app.py` in `folder`; yields its address; what it writes lies in `home/log`."""
    port = port or free_port()
    home.mkdir(parents=True, exist_ok=True)
    env = environment(hub, home, port) | more
    with (home / "log").open("ab") as log:
        space = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        _wait(space, f"http://127.0.0.1:{port}", home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        space.send_signal(signal.SIGTERM)
        try:
            space.wait(60)
        finally:
            space.kill()
    assert space.returncode == 0, (home / "log").read_text()[-3000:]


def _wait(space: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and space.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the Space did not start: {log.read_text()[-3000:]}")
