"""Following watches: whose time has come, what a webhook points at, and when one pauses itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from service.deciding import Deciding, Decision
from service.hub import HubUnavailable, patience
from service.jobs import Job, State
from service.releases import is_meant, one_release, releases
from service.watch_store import WatchStore
from service.watches import Kind, Watch
from tricks import BadInput

if TYPE_CHECKING:
    from service.api import Service

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""So many polls that fail, or jobs that fail, in a row: the watch pauses itself."""
REST_S = 6 * 3600.0
"""How long a watch rests whose Hub is away."""
PATIENCE_S = 120.0  # of one poll with a Hub that asks to slow down


class Watching:
    """Follows the watches of one service."""

    def __init__(self, service: Service, store: WatchStore) -> None:
        self._service = service
        self._store = store
        self._deciding = Deciding(service, store)

    def due(self, now: float | None = None) -> list[Watch]:
        """The watches whose time has come."""
        now = time.time() if now is None else now
        return [
            watch
            for watch in self._store.all()
            if self._store.paused(watch.id) is None
            and now - self._store.state(watch.id).get("polled", 0) >= watch.every
        ]

    def poll(self, watch: Watch, *, dry_run: bool = False) -> list[Decision]:
        """Look at the watch's target and queue what is new; a dry run only tells.

        Nothing is decided where another process polls the same watch. A failure is kept with the watch, and
        pauses it where it was the last of many.

        Raises:
            BadInput: the target cannot be read (in a dry run, or asked for by a person).
        """
        if dry_run:
            with patience(PATIENCE_S):
                return list(self._deciding.decide(watch, releases(watch), dry_run=True))
        with self._store.polling(watch.id) as mine, patience(PATIENCE_S):
            if not mine:
                return []
            self._store.set_state(watch.id, polled=time.time())
            if self._pause_for_jobs(watch):
                return []
            try:
                made = list(self._deciding.decide(watch, releases(watch), dry_run=False))
            except BadInput as error:
                self._failed(watch, error)
                raise
            self._store.set_state(watch.id, failures=None, error=None, began=True)
            if "until" in self._store.state(watch.id):  # its rest is over
                self._store.set_state(watch.id, paused=None, until=None)
            return made

    def look(self, model: str) -> list[Decision]:
        """Somebody says that `model` changed: have the watches that mean it decide, after asking the Hub."""
        made: list[Decision] = []
        for watch in self._store.all():
            if self._store.paused(watch.id) is not None or not self._means(watch, model):
                continue
            revision = watch.target.partition("@")[2] or None if watch.kind is Kind.MODEL else None
            with self._store.polling(watch.id) as mine, patience(PATIENCE_S):
                if not mine:  # the poll that runs now may have listed before the change
                    raise HubUnavailable(f"watch {watch.id} is being polled; try again")
                try:
                    made += self._deciding.decide(watch, [one_release(model, revision)], dry_run=False)
                except HubUnavailable:
                    raise
                except BadInput as error:
                    log.warning("watch %s (%s): %s", watch.id, watch.name, error)
        return made

    def _means(self, watch: Watch, model: str) -> bool:
        match watch.kind:
            case Kind.MODEL:
                return watch.target.partition("@")[0].casefold() == model.casefold()
            case Kind.COLLECTION:
                return self._is_collected(watch, model)
            case _:
                return is_meant(watch, model)

    def _is_collected(self, watch: Watch, model: str) -> bool:
        try:
            return any(release.model == model for release in releases(watch))
        except HubUnavailable:
            raise
        except BadInput as error:  # the collection is gone: its own poll says so
            log.warning("watch %s (%s): %s", watch.id, watch.name, error)
            return False

    # when things go wrong

    def _failed(self, watch: Watch, error: BadInput) -> None:
        """Count a poll that failed. Where it is the Hub that is away, the watch wakes again by itself."""
        failures = int(self._store.state(watch.id).get("failures", 0)) + 1
        self._store.set_state(watch.id, failures=failures, error=str(error))
        if failures < MAX_FAILURES:
            return
        why = f"{failures} polls in a row failed, the last: {error}"
        if isinstance(error, HubUnavailable):
            self._pause(watch, f"{why}; it is tried again in {REST_S / 3600:g} hours", time.time() + REST_S)
        else:
            self._pause(watch, why)

    def _pause_for_jobs(self, watch: Watch) -> bool:
        """Pause a watch whose last jobs all failed."""
        since = self._store.state(watch.id).get("resumed", 0)
        jobs = [job for job in self._jobs(watch) if job.created > since and job.state.final]
        last = jobs[:MAX_FAILURES]
        if len(last) < MAX_FAILURES or any(job.state not in (State.FAILED, State.REJECTED) for job in last):
            return False
        self._pause(watch, f"its last {len(last)} jobs failed, the newest: {last[0].reason}")
        return True

    def _jobs(self, watch: Watch) -> Iterator[Job]:
        for job_id in self._store.jobs(watch.id, limit=4 * MAX_FAILURES):
            try:
                yield self._service.job(job_id)
            except BadInput:
                continue

    def _pause(self, watch: Watch, why: str, until: float | None = None) -> None:
        log.warning("watch %s (%s) is paused: %s", watch.id, watch.name, why)
        self._store.set_state(watch.id, paused=why, until=until)
