"""The Celery tasks of the watches: look whose time has come, and at what a webhook points."""

from __future__ import annotations

import logging

from celery import Celery

from service.api import Service
from service.hub import HubUnavailable
from service.queue import LOOK, POLL
from tricks import BadInput

log = logging.getLogger(__name__)

LOOK_RETRIES = 5
LOOK_AGAIN = 30.0  # seconds


def add_watch_tasks(app: Celery, service: Service) -> None:
    """Register the tasks on this process's app."""

    @app.task(name=POLL)
    def poll() -> None:
        poll_due(service)

    @app.task(name=LOOK, bind=True, max_retries=LOOK_RETRIES, default_retry_delay=LOOK_AGAIN)
    def look(self: object, model: str) -> None:
        try:
            service.watching.look(model)
        except HubUnavailable as error:
            raise self.retry(exc=error) from error  # type: ignore[attr-defined]
        except BadInput as error:
            log.warning("webhook about %s: %s", model, error)


def poll_due(service: Service) -> int:
    """Poll every watch whose time has come; one that fails does not keep the others.

    Returns:
        How many were polled.
    """
    due = service.watching.due()
    for watch in due:
        try:
            made = service.watching.poll(watch)
        except BadInput as error:
            log.warning("watch %s (%s): %s", watch.id, watch.name, error)
        except Exception:
            log.exception("watch %s (%s) failed; it is polled again", watch.id, watch.name)
        else:
            queued = [f"{decision.model} as job {decision.job}" for decision in made if decision.job]
            log.info("watch %s (%s): queued %s", watch.id, watch.name, ", ".join(queued) or "nothing")
    return len(due)
