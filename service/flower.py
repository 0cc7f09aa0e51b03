"""The Celery app for Flower: `celery --app service.flower flower`. It must know where our messages lie."""

from __future__ import annotations

from service.queue import make_app
from service.settings import Settings

app = make_app(Settings.from_env().redis_url or "redis://localhost:6379/0")
