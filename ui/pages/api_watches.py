"""The endpoints of the watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from service.api import Service
from ui.pages.visitor import Visitor
from ui.pages.watch_actions import WatchActions, check_operator

Asked = Callable[[Callable[[Visitor], Any], gr.Request], Any]


@dataclass(frozen=True)
class WatchEndpoints:
    """The actions, each a method whose docstring is its documentation."""

    service: Service
    asked: Asked

    def _do(self, action: Callable[[WatchActions], Any], request: gr.Request) -> Any:
        def ask(asker: Visitor) -> Any:
            check_operator(asker)
            return action(WatchActions(self.service))

        return self.asked(ask, request)

    def watches(self, request: gr.Request) -> list[Any]:
        """Every watch, with its state."""
        return list(self._do(lambda on: on.listed(), request))

    def watch_save(
        self,
        watch_id: str,
        kind: str,
        target: str,
        tricks: list[str],
        to: str,
        minutes: float,
        per_day: int,
        private: bool,
        request: gr.Request,
    ) -> dict[str, Any]:
        """Make a watch (with an empty id), or change one; the watch. `kind` is author, model, collection or
        search, `minutes` how often it looks, `per_day` how many jobs a day it makes at most."""
        fields = (watch_id, kind, target, tricks, to, minutes, per_day, private)
        return dict(self._do(lambda on: on.save(*fields).to_json(), request))

    def watch_pause(self, watch_id: str, request: gr.Request) -> bool:
        """Pause a watch, or go on with a paused one; whether it is paused now."""
        return bool(self._do(lambda on: on.pause(watch_id), request))

    def watch_dry_run(self, watch_id: str, request: gr.Request) -> list[Any]:
        """What a watch would do now; nothing is done."""
        return list(self._do(lambda on: on.dry_run(watch_id), request))

    def watch_history(self, watch_id: str, request: gr.Request) -> list[Any]:
        """What a watch decided, and why."""
        return list(self._do(lambda on: on.history(watch_id), request))

    def watch_remove(self, watch_id: str, request: gr.Request) -> bool:
        """Forget a watch; its jobs stay."""
        self._do(lambda on: on.remove(watch_id), request)
        return True

    def all(self) -> tuple[Callable[..., Any], ...]:
        """Every action."""
        change = (self.watch_save, self.watch_pause, self.watch_remove)
        return (self.watches, *change, self.watch_dry_run, self.watch_history)
