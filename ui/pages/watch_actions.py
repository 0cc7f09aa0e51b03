"""What can be done with watches, by a page's button or a program alike. They are the operator's alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.api import Service
from service.watches import Kind, Watch, new_watch
from tricks import BadInput
from ui.pages.visitor import Visitor

MINUTE = 60.0


def check_operator(asker: Visitor) -> None:
    """Raises BadInput for anybody else."""
    if not asker.operator:
        raise BadInput("watches are the operator's: they convert with this installation's own account")


@dataclass(frozen=True)
class WatchActions:
    """The watches of one service; each action raises BadInput where it cannot be done."""

    service: Service

    def save(
        self,
        watch_id: str | None,
        kind: str,
        target: str,
        tricks: Sequence[str],
        to: str,
        minutes: float,
        per_day: float,
        private: bool,
    ) -> Watch:
        """A new watch, or the one of this id changed; its filters stay."""
        if kind not in list(Kind):
            raise BadInput(f"{kind!r} cannot be watched; choose one of {', '.join(Kind)}")
        store = self.service.watches
        made = new_watch(
            Kind(kind),
            target or "",
            list(tricks or []),
            to or "",
            every=float(minutes or 0) * MINUTE,
            per_day=int(per_day or 0),
            private=private,
        )
        if watch_id:
            former = store.get(watch_id)
            kept = {name: getattr(made, name) for name in _FORM}
            made = replace(former, **kept)
        store.add(made)
        return made

    def pause(self, watch_id: str) -> bool:
        """Pause the watch, or go on with a paused one; whether it is paused now."""
        store = self.service.watches
        if store.state(store.get(watch_id).id).get("paused"):
            store.set_state(watch_id, paused=None, failures=None, error=None, resumed=time.time())
            return False
        store.set_state(watch_id, paused="by hand")
        return True

    def remove(self, watch_id: str) -> None:
        """Forget the watch; its jobs stay."""
        self.service.watches.remove(self.service.watches.get(watch_id).id)

    def dry_run(self, watch_id: str) -> list[dict[str, Any]]:
        """What the watch would do now."""
        watch = self.service.watches.get(watch_id)
        return [decision.to_json() for decision in self.service.watching.poll(watch, dry_run=True)]

    def history(self, watch_id: str) -> list[dict[str, Any]]:
        """What the watch decided, newest first."""
        return self.service.watches.history(self.service.watches.get(watch_id).id)

    def listed(self) -> list[dict[str, Any]]:
        """Every watch with its state."""
        store = self.service.watches
        return [watch.to_json() | {"state": store.state(watch.id)} for watch in store.all()]


_FORM = ("kind", "target", "tricks", "to", "every", "per_day", "private")
