"""A real web process, asked for its pages while others work, as open browsers ask."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from benchmarks.chaos.cluster import free_port
from service.api import Service
from service.settings import Settings

ASK_EVERY = 0.25  # seconds between two rounds; each asks for every page once
STARTED_WITHIN = 120.0  # seconds


class Pages:
    """Asks for the queue's page, its live part and the newest job's; a context manager."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._service = service
        port = free_port()
        self._at = f"http://127.0.0.1:{port}"
        self._times: dict[str, list[float]] = defaultdict(list)
        self._over = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._read)
        data = settings.data / "web"
        data.mkdir(parents=True)
        with (data / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ui.cli", "serve", "--workers", "0", "--port", str(port)],
                env=os.environ | {"REDIS_URL": settings.redis_url or "", "TRICKSMITH_DATA": str(data)},
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + STARTED_WITHIN
        while True:
            try:
                self._ask("/readyz")
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.2)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._process.terminate()
        self._process.wait(30)
        if self._failed is not None and error is None:
            raise self._failed  # pages that do not answer are not fast

    def told(self) -> dict[str, dict[str, float]]:
        """Per page: how often it was asked for since the last call, and how many ms that took."""
        times, self._times = self._times, defaultdict(list)
        return {
            name: {
                "asked": len(of),
                "median_ms": sorted(of)[len(of) // 2],
                "p99_ms": sorted(of)[int(0.99 * len(of))],
            }
            for name, of in times.items()
        }

    def _ask(self, path: str) -> None:
        with urlopen(self._at + path, timeout=30) as answer:
            answer.read()

    def _read(self) -> None:
        try:
            while not self._over.wait(ASK_EVERY):
                self._round()
        except Exception as error:  # noqa: BLE001 (told when all is over)
            self._failed = error

    def _round(self) -> None:
        pages = {"queue page": "/jobs", "queue": "/live/queue"}
        if newest := self._service.jobs(limit=1):
            pages["job"] = f"/live/job?id={newest[0].id}"
        for name, path in pages.items():
            started = time.monotonic()
            self._ask(path)
            self._times[name].append((time.monotonic() - started) * 1000)
