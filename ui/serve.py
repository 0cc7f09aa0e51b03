"""`tricksmith serve`: Redis, workers and the web page in one command, stopped together."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from service.api import Service
from service.settings import Settings
from ui.cli import DONE
from ui.pages.guard import is_loopback
from ui.progress import note, say
from ui.stack import announced, log_file, processes, queue_service

if TYPE_CHECKING:  # Gradio takes seconds to import
    from ui.pages.api import Gpu


def serve(host: str, port: int, workers: int) -> NoReturn:
    """Run until SIGINT or SIGTERM, then end the process."""
    stop = threading.Event()
    roles = ["worker"] * workers + ["beat"] * bool(workers)
    with (
        signals(stop),
        queue_service() as (service, settings),
        announced(settings, workers),
        page(service, host, port),
        processes(settings, roles),
    ):
        _greet(settings, host, port, workers)
        stop.wait()
        note("stopping; a running job goes on at its stage when you start again")
    leave(DONE)


def leave(code: int) -> NoReturn:
    """End the process with `code`, whatever its threads are at.

    A thread that looks at a model is in torch, and the interpreter's own way to end would tear it down there,
    which aborts the process.
    """
    atexit._run_exitfuncs()  # folders of whatever is not done yet, and logs
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextmanager
def page(
    service: Service, host: str, port: int, *, probes: bool = True, gpu: Gpu | None = None
) -> Iterator[None]:
    """Serve the pages for as long as the block runs; `probes`: health and metrics too."""
    # Gradio takes seconds to import, and nothing but this command needs it.
    from ui import web
    from ui.health import add_health
    from ui.webhook import add_webhook

    app = web.launch(service, host, port, gpu)
    try:
        if probes:
            add_health(app.app, service.health())
        if (receiver := service.webhook_receiver()) is not None:
            add_webhook(app.app, receiver)
        # What is there now stays, and each look through it for garbage takes a good part of a second.
        gc.collect()
        gc.freeze()
        yield
    finally:
        app.close(verbose=False)


@contextmanager
def signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGINT and SIGTERM: everything is then left through its `with`."""
    former = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _greet(settings: Settings, host: str, port: int, workers: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    say(f"Tricksmith is at http://{shown}:{port} (Ctrl-C stops it)")
    note(f"jobs and data: {settings.data}; what the workers do: {log_file(settings)}")
    if workers == 0:
        note("no worker runs here: jobs wait for `tricksmith worker`")
    if not is_loopback(host):
        note(
            f"whoever reaches {host}:{port} can submit jobs with this machine's Hub token, "
            "but cannot name folders of this machine"
        )
