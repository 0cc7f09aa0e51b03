"""What becomes of each release that a watch finds: queued once, never more than asked for, or why not."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from service.converted import converted_by
from service.hub import HubUnavailable
from service.jobs import request_key
from service.limits import LimitReached
from service.naming import destination
from service.publish import is_folder
from service.releases import Release, one_release
from service.screening import opted_out, too_young, why_not_listed, why_not_source
from service.source import Source, resolve
from service.watch_store import WatchStore
from service.watches import Kind, Watch
from tricks import BadInput

if TYPE_CHECKING:
    from service.api import Service

BEFORE = "it was there before the watch"
LOOK_AGAIN_S = 86400.0
"""What speaks against a model at one commit may end (a gate, say): after so long it is looked at again."""


class Outcome(StrEnum):
    """What becomes of a release."""

    QUEUED = "queued"
    SKIPPED = "skipped"
    WAITING = "waiting"


@dataclass(frozen=True)
class Decision:
    """What a watch does with one model, and why."""

    model: str
    outcome: Outcome
    reason: str | None = None
    commit: str | None = None
    to: str | None = None
    job: str | None = None
    files: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class Deciding:
    """Decides for the watches of one service, and queues the jobs."""

    def __init__(self, service: Service, store: WatchStore) -> None:
        self._service = service
        self._store = store

    def decide(self, watch: Watch, found: list[Release], *, dry_run: bool) -> Iterator[Decision]:
        """Decide for each release, queue what passes, and keep what was decided; a dry run only tells."""
        out = opted_out(self._service.settings.data / "opt-out.txt")
        now = time.time()
        polled, today = 0, self._store.today(watch.id)
        first = not self._store.state(watch.id).get("began")
        for release in found:
            if self._is_known(watch, release, now):
                if dry_run:
                    yield self._as_decided(watch, release)
                continue
            decision = self._by_listing(watch, release, out, now, first=first)
            if isinstance(decision, Release):
                full = self._full(watch, polled, today)
                decision = self._by_repo(watch, decision, full, dry_run=dry_run)
            if decision.outcome is Outcome.QUEUED:
                polled, today = polled + 1, today + 1
            if not dry_run:
                self._remember(watch, decision, now)
            yield decision

    def _by_listing(
        self, watch: Watch, release: Release, out: frozenset[str], now: float, *, first: bool
    ) -> Decision | Release:
        """The decision, where the listing is enough for one; else the release as the Hub describes it."""
        try:
            if release.commit is None:  # a collection, or a listing that says little
                release = one_release(release.model, release.revision)
        except HubUnavailable as error:
            return Decision(release.model, Outcome.WAITING, str(error))
        except BadInput as error:
            return Decision(release.model, Outcome.SKIPPED, str(error))
        was_there = first and _dates_from_before(watch, release)
        why = BEFORE if was_there else why_not_listed(watch, release, out)
        if why is not None:
            return Decision(release.model, Outcome.SKIPPED, why, release.commit)
        if (why := too_young(watch, release, now)) is not None:
            return Decision(release.model, Outcome.WAITING, why, release.commit)
        return release

    def _full(self, watch: Watch, polled: int, today: int) -> str | None:
        if polled >= watch.per_poll:
            return f"{watch.per_poll} per poll are enough; it comes next time"
        if today >= watch.per_day:
            return f"{watch.per_day} per day are enough; it comes tomorrow"
        return None

    def _is_known(self, watch: Watch, release: Release, now: float) -> bool:
        """Whether this was decided before and nothing is to be added: a poll must not ask for every repo."""
        seen = self._store.seen(watch.id, release.model)
        if seen.get("reason") == BEFORE:
            return True
        same = seen.get("commit") == release.commit or (release.commit is None and not watch.revisions)
        if not seen or not same:
            return False
        fresh = now - seen["at"] < LOOK_AGAIN_S
        return bool(seen["outcome"] == Outcome.QUEUED or (seen["outcome"] == Outcome.SKIPPED and fresh))

    def _as_decided(self, watch: Watch, release: Release) -> Decision:
        """What was decided before, told again."""
        seen = self._store.seen(watch.id, release.model)
        job = seen.get("job")
        why = seen.get("reason") if job is None else f"job {job} converts it already"
        return Decision(release.model, Outcome.SKIPPED, why, seen.get("commit"), seen.get("to"))

    def _by_repo(self, watch: Watch, release: Release, full: str | None, *, dry_run: bool) -> Decision:
        """Decide by the repo itself: at one commit, from metadata and headers."""
        model = release.model
        seen = self._store.seen(watch.id, model)
        try:
            source = resolve(release.reference)
            why = why_not_source(watch, source) or self._why_not_again(watch, source, seen)
            if why is None and full is not None:
                return Decision(model, Outcome.WAITING, full, source.commit)
            to = destination(watch.to, source.model, watch.tricks)
            why = why or self._why_not_fit(watch, source, to)
            if why is not None:
                return Decision(model, Outcome.SKIPPED, why, source.commit)
            return self._queue(watch, source, to, dry_run=dry_run)
        except (HubUnavailable, LimitReached) as error:
            return Decision(model, Outcome.WAITING, str(error), release.commit)
        except BadInput as error:
            return Decision(model, Outcome.SKIPPED, str(error), release.commit)

    def _why_not_again(self, watch: Watch, source: Source, seen: dict[str, Any]) -> str | None:
        if seen.get("files") is None:
            return None
        if seen["files"] == _fingerprint(source):
            return "nothing that a conversion reads has changed"
        if not watch.revisions:
            return "an earlier commit was converted; watch the model itself for new revisions"
        return None

    def _why_not_fit(self, watch: Watch, source: Source, to: str) -> str | None:
        if (by := converted_by(source, watch.tricks, ours=None if is_folder(to) else to)) is not None:
            return f"{by} is its conversion already"
        plan = self._service.plan(source.reference, watch.tricks)
        if not plan.fits:
            return "no place for " + ", ".join(watch.tricks)
        return None

    def _queue(self, watch: Watch, source: Source, to: str, *, dry_run: bool) -> Decision:
        key = request_key(source.key, list(watch.tricks), to, pr=False, private=watch.private)
        decided = Decision(source.model, Outcome.QUEUED, None, source.commit, to, files=_fingerprint(source))
        if dry_run:
            held = self._store.holder(key)
            return decided if held is None else _held(decided, held)
        if (held := self._store.claim(key)) is not None:
            return _held(decided, held)
        try:
            job = self._service.submit(
                source.reference, watch.tricks, to, private=watch.private, schedule=True
            )
        except BaseException:
            self._store.unclaim(key)
            raise
        self._store.claimed(key, job.id)
        self._store.count(watch.id)
        return Decision(**{**asdict(decided), "outcome": Outcome.QUEUED, "job": job.id})

    def _remember(self, watch: Watch, decision: Decision, now: float) -> None:
        former = self._store.seen(watch.id, decision.model)
        kept = {name: value for name, value in decision.to_json().items() if name != "model"}
        if decision.outcome is not Outcome.QUEUED:
            kept["files"] = former.get("files")  # what was converted stays known
        self._store.decided(watch.id, decision.model, kept, now, quiet=decision.reason == BEFORE)


def _dates_from_before(watch: Watch, release: Release) -> bool:
    """Whether what the first look finds is not new. Later, what was not there then is new, whatever its date:
    many a repo is made in private long before it is released.
    """
    if watch.kind not in (Kind.AUTHOR, Kind.SEARCH):
        return False
    return release.created is None or release.created < watch.created - watch.max_age * 86400


def _held(decided: Decision, held: str) -> Decision:
    return Decision(
        decided.model,
        Outcome.SKIPPED,
        f"job {held} converts it already" if held != "claimed" else "it is being queued already",
        decided.commit,
        decided.to,
    )


def _fingerprint(source: Source) -> str:
    """Equal where a conversion would read the same bytes, whatever else of the repo changed."""
    listing = json.dumps([[file.name, file.size, file.sha256, file.blob] for file in source.files])
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
