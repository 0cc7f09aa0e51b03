"""Tricksmith on a Hub Space: what its app.py runs (see service/spaces.py for how it came there)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.history import History, keeper_of
from service.logs import set_up_logs
from service.settings import Settings, signs_in
from service.space_setup import Setup
from tricks import BadInput, TricksmithError
from ui.pages.api import Gpu
from ui.progress import say
from ui.serve import leave, page, signals
from ui.stack import processes, queue_service

PORT = 7860
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""On ZeroGPU no process but the main one is ever lent a GPU."""
TOKEN = "TRICKSMITH_HISTORY_TOKEN"


def main(folder: Path, gpu: Gpu | None = None) -> None:
    """Run until the Space is stopped; ends the process with one line where it cannot run.

    Args:
        folder: where the Space's files lie.
        gpu: on ZeroGPU, the function that is lent one.
    """
    try:
        run(Setup.read(folder), folder, gpu)
    except TricksmithError as error:
        sys.exit(f"tricksmith: {error}")


def run(setup: Setup, folder: Path, gpu: Gpu | None = None) -> None:
    """Redis, a worker and the pages, or the pages alone before a Redis elsewhere; ends the process.

    Raises:
        BadInput: the Space lacks its sign-in or a secret.
        TricksmithError: its history cannot be read now.
    """
    for name, value in setup.limits.items():
        os.environ.setdefault(name, value)
    # Processes that it starts find the rooms here; nothing of ours is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    # Who asks stands in a header of the Hub's proxy, before which nobody comes here.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    _check(setup)
    set_up_logs(as_json=False)
    stop = threading.Event()
    host, port = "0.0.0.0", int(os.environ.get("GRADIO_SERVER_PORT") or PORT)
    with (
        signals(stop),
        queue_service() as (service, settings),
        _history(setup, settings),
        page(service, host, port, gpu=gpu, probes=False),
        processes(
            settings,
            [] if setup.remote else ["worker", "beat"],
            aloud=True,
            more=NO_GPU if setup.zero else {},
        ),
    ):
        say(f"Tricksmith is at port {port}, on {setup.hardware}")
        stop.wait()
    leave(0)


def _check(setup: Setup) -> None:
    if not signs_in():
        raise BadInput("this Space has no sign-in; its README needs 'hf_oauth: true'")
    if setup.remote and not os.environ.get("REDIS_URL"):
        raise BadInput(
            "this Space has no Redis; add the secret REDIS_URL, or deploy it without --remote-redis"
        )


@contextmanager
def _history(setup: Setup, settings: Settings) -> Iterator[None]:
    """Restored before the block, kept while it runs."""
    if setup.keeper is None:
        yield
        return
    assert settings.redis_url is not None
    history = History(settings.redis_url, keeper_of(setup.keeper, os.environ.get(TOKEN)))
    restored = history.restore()
    say(f"{restored} keys restored from {setup.history}" if restored else "there was nothing to restore")
    with history.kept():
        yield
