"""Health, readiness and metrics over HTTP (probe.py asks).

/healthz   this process answers
/readyz    it can do its work: Redis answers and takes writes (503 otherwise, with the reason)
/metrics   see metrics.py
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

from service.jobs import JobStore
from service.metrics import CONTENT_TYPE, exposition
from service.registry import Registry

PATHS = ("/healthz", "/readyz", "/metrics")


class Health:
    """What a process answers to the three questions."""

    def __init__(self, store: JobStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for one of `PATHS`."""
        text = "text/plain; charset=utf-8"
        if path == "/healthz":
            return 200, text, b"ok\n"
        try:
            if path == "/metrics":
                return 200, CONTENT_TYPE, exposition(self._store, self._registry)
            if path == "/readyz":
                self._store.check_writable()
                return 200, text, b"ok\n"
        except redis.RedisError as error:
            # Only the kind of error: its text may hold an address with a password.
            return 503, text, f"Redis does not answer ({type(error).__name__})\n".encode()
        return 404, text, f"here are {', '.join(PATHS)}\n".encode()


@contextmanager
def served(health: Health, port: int, host: str = "0.0.0.0") -> Iterator[int]:
    """Answer on `port` (0: any) while the block runs; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; nobody may hold a thread

        def do_GET(self) -> None:
            status, kind, body = health.answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.2,), name="health", daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
