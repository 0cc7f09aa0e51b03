"""Watches in Redis: the rules, what each has seen, what it did, and who polls.

Keys, all under `tricksmith:`

    watches            hash    id -> the rule (JSON)
    watch:ID:state     hash    paused (why), until, failures, polled, began, resumed, error
    watch:ID:seen      hash    model -> {commit, files, outcome, reason, job, to, at} (JSON) as last decided
    watch:ID:history   stream  every decision that was new
    watch:ID:day:DATE  string  how many jobs that day (UTC)
    watch:ID:lock      string  somebody polls it now
    release:KEY        string  the job that converts this release in this way, or "claimed"
    webhook:DIGEST     string  a delivery that was taken
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import redis
from redis.exceptions import LockError

from service.jobs import PREFIX
from service.watches import Watch
from tricks import BadInput

KEPT_HISTORY = 1000
LOCK_S = 900.0
CLAIM_S = 600
"""How long a claim stands whose job was not made: its maker died in between."""


class WatchStore:
    """Reads and changes watches; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    # rules

    def add(self, watch: Watch) -> None:
        """Keep a rule."""
        self._redis.hset(PREFIX + "watches", watch.id, json.dumps(watch.to_json()))

    def get(self, watch_id: str) -> Watch:
        """The rule.

        Raises:
            BadInput: there is no such watch.
        """
        text = self._redis.hget(PREFIX + "watches", watch_id)
        if text is None:
            raise BadInput(f"there is no watch {watch_id!r}; `tricksmith watch list` lists them")
        return Watch.from_json(json.loads(text))

    def all(self) -> list[Watch]:
        """Every rule, oldest first."""
        found = [Watch.from_json(json.loads(text)) for text in self._redis.hvals(PREFIX + "watches")]
        return sorted(found, key=lambda watch: watch.created)

    def remove(self, watch_id: str) -> None:
        """Forget a rule and what it has seen; its jobs stay.

        Raises:
            BadInput: there is no such watch.
        """
        self.get(watch_id)
        keys = [self._key(watch_id, part) for part in ("state", "seen", "history", "lock")]
        self._redis.hdel(PREFIX + "watches", watch_id)
        self._redis.delete(*keys)

    # state

    def state(self, watch_id: str) -> dict[str, Any]:
        """`paused` (why), `until`, `error` (of the last poll), `failures`, `polled`, `began`, `resumed`.

        Times are in unix seconds.
        """
        found = self._redis.hgetall(self._key(watch_id, "state"))
        return {name: json.loads(text) for name, text in found.items()}

    def paused(self, watch_id: str) -> str | None:
        """Why the watch rests now; None where it does not (or its rest is over)."""
        state = self.state(watch_id)
        if time.time() >= state.get("until", float("inf")):
            return None
        why: str | None = state.get("paused")
        return why

    def set_state(self, watch_id: str, **values: Any) -> None:
        """Set what is given; None deletes."""
        key = self._key(watch_id, "state")
        for name, value in values.items():
            if value is None:
                self._redis.hdel(key, name)
            else:
                self._redis.hset(key, name, json.dumps(value))

    @contextmanager
    def polling(self, watch_id: str) -> Iterator[bool]:
        """Whether this is the only one that polls the watch now; it is kept so for the block."""
        lock = self._redis.lock(self._key(watch_id, "lock"), timeout=LOCK_S)
        mine = bool(lock.acquire(blocking=False))
        try:
            yield mine
        finally:
            if mine:
                with suppress(LockError):  # held for longer than it lasts
                    lock.release()

    # what was decided

    def seen(self, watch_id: str, model: str) -> dict[str, Any]:
        """What was last decided of a model; empty where nothing was."""
        text = self._redis.hget(self._key(watch_id, "seen"), model)
        return json.loads(text) if text else {}

    def decided(
        self, watch_id: str, model: str, decision: dict[str, Any], at: float, *, quiet: bool = False
    ) -> None:
        """Keep a decision; one that says the same as the last, or is `quiet`, is no news for the history."""
        former = self.seen(watch_id, model)
        former.pop("at", None)
        kept = json.dumps({**decision, "at": at})
        self._redis.hset(self._key(watch_id, "seen"), model, kept)
        if former != decision and not quiet:
            told = {name: str(value) for name, value in decision.items() if value is not None}
            entry = {"model": model, **told}
            self._redis.xadd(self._key(watch_id, "history"), entry, maxlen=KEPT_HISTORY, approximate=True)

    def history(self, watch_id: str, limit: int = 50) -> list[dict[str, Any]]:
        """The latest decisions, newest first, each with `at` in unix seconds."""
        self.get(watch_id)
        entries = self._redis.xrevrange(self._key(watch_id, "history"), count=limit)
        return [{"at": int(entry.partition("-")[0]) / 1000, **told} for entry, told in entries]

    def jobs(self, watch_id: str, limit: int = 10) -> list[str]:
        """The ids of the latest jobs that it made, newest first."""
        return [told["job"] for told in self.history(watch_id, 200) if "job" in told][:limit]

    # once and not too often

    def claim(self, key: str) -> str | None:
        """Claim a release: None where it is ours now, else the job that has it (or "claimed")."""
        if self._redis.set(f"{PREFIX}release:{key}", "claimed", nx=True, ex=CLAIM_S):
            return None
        return str(self._redis.get(f"{PREFIX}release:{key}") or "claimed")

    def holder(self, key: str) -> str | None:
        """The job that converts the release, without claiming it."""
        found: str | None = self._redis.get(f"{PREFIX}release:{key}")
        return found

    def claimed(self, key: str, job_id: str) -> None:
        """The claim led to a job: nobody converts this release in this way again."""
        self._redis.set(f"{PREFIX}release:{key}", job_id)

    def unclaim(self, key: str) -> None:
        """The claim led to nothing."""
        self._redis.delete(f"{PREFIX}release:{key}")

    def today(self, watch_id: str) -> int:
        """How many jobs the watch made today."""
        return int(self._redis.get(self._day(watch_id)) or 0)

    def count(self, watch_id: str) -> None:
        """One more job today."""
        key = self._day(watch_id)
        self._redis.incr(key)
        self._redis.expire(key, 3 * 86400)

    def first_time(self, digest: str, seconds: int) -> bool:
        """Whether this delivery was not taken within the last `seconds`."""
        return bool(self._redis.set(f"{PREFIX}webhook:{digest}", str(time.time()), nx=True, ex=seconds))

    def forget_delivery(self, digest: str) -> None:
        """A delivery that could not be handled may come again."""
        self._redis.delete(f"{PREFIX}webhook:{digest}")

    def within_rate(self, name: str, limit: int, seconds: int) -> bool:
        """Whether fewer than `limit` of these came in this window of `seconds`; counts this one."""
        key = f"{PREFIX}rate:{name}:{int(time.time()) // seconds}"
        count = int(self._redis.incr(key))
        self._redis.expire(key, 2 * seconds)
        return count <= limit

    def _key(self, watch_id: str, part: str) -> str:
        return f"{PREFIX}watch:{watch_id}:{part}"

    def _day(self, watch_id: str) -> str:
        return self._key(watch_id, f"day:{datetime.now(UTC):%Y-%m-%d}")
