"""Which workers live: each says so every few seconds, and is forgotten when it stops saying it.

Keys under `tricksmith:`: `worker:ID` holds one worker's `About` as JSON and vanishes by itself; `workers` is
the set of ids that were ever told, swept when read. `starting` is there while a worker starts: from the
moment at which somebody means to have one until it says itself that it lives.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import redis

from service.jobs import PREFIX, SCHEMA, SOCKET_TIMEOUT

SEEN_FOR = 15.0  # seconds without a word after which a worker counts as gone
START_WITHIN = 60.0  # seconds for which a worker that was announced is believed to start
ASK_EVERY = 2.0  # seconds for which an answer is used again


@dataclass(frozen=True)
class About:
    """What a worker tells of itself; times are unix seconds by its own clock."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    places: int
    """How many jobs it runs at a time."""
    version: str
    started: float
    at: float = 0.0
    running: int = 0
    gpus: int = 0
    gpus_busy: int = 0
    disk_free: int = 0
    cache_bytes: int = 0
    schema: int = SCHEMA


class Registry:
    """Says and asks who lives; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=SOCKET_TIMEOUT, socket_connect_timeout=SOCKET_TIMEOUT
        )
        self._lock = threading.Lock()
        self._known: tuple[float, list[About]] | None = None

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def announce(self) -> None:
        """A worker starts."""
        self._redis.set(PREFIX + "starting", "1", px=int(START_WITHIN * 1000))

    def starting(self) -> bool:
        """Whether a worker starts that does not live yet."""
        return bool(self._redis.exists(PREFIX + "starting"))

    def say(self, about: About) -> None:
        """This worker lives."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(f"{PREFIX}worker:{about.id}", json.dumps(asdict(about)), px=int(SEEN_FOR * 1000))
            pipe.sadd(PREFIX + "workers", about.id)
            pipe.delete(PREFIX + "starting")
            pipe.execute()

    def leave(self, worker: str) -> None:
        """This worker stops."""
        self._redis.delete(f"{PREFIX}worker:{worker}")
        self._redis.srem(PREFIX + "workers", worker)

    def workers(self) -> list[About]:
        """The living workers, as of at most two seconds ago."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > ASK_EVERY:
                self._known = time.monotonic(), self._ask()
            return self._known[1]

    def has(self, queue: str) -> bool:
        """Whether a living worker has a GPU and works off the GPU queue, or works off any other `queue`."""
        return any(queue in about.queues and (queue != "gpu" or about.gpus) for about in self.workers())

    def places(self, queues: tuple[str, ...]) -> int:
        """How many jobs of these queues the living workers run at a time."""
        return sum(about.places for about in self.workers() if set(queues) & set(about.queues))

    def _ask(self) -> list[About]:
        ids = sorted(self._redis.smembers(PREFIX + "workers"))
        texts = self._redis.mget([f"{PREFIX}worker:{worker}" for worker in ids]) if ids else []
        gone = [worker for worker, text in zip(ids, texts, strict=True) if text is None]
        if gone:
            self._redis.srem(PREFIX + "workers", *gone)
        known = {field.name for field in fields(About)}
        found = []
        for text in filter(None, texts):
            data = {name: value for name, value in json.loads(text).items() if name in known}
            found.append(About(**{**data, "queues": tuple(data["queues"])}))
        return found
