"""Health, readiness and metrics over HTTP; and a probe that asks for them: `python -m service.health URL`.

/healthz   this process answers
/readyz    it can do its work: Redis answers and takes writes (503 otherwise, with the reason)
/metrics   see metrics.py
"""

from __future__ import annotations

import sys
import threading
import urllib.request
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


def main(url: str) -> int:
    """Ask; 0 where the answer is good. What a container's health check runs: no curl is needed."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
