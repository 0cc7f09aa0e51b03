"""Health, readiness and metrics on the web page's own server."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response

from service.health import PATHS, Health


def add_health(app: FastAPI, health: Health) -> None:
    """Answer GET on `PATHS`."""
    for path in PATHS:

        def answer(path: str = path) -> Response:
            status, kind, body = health.answer(path)
            return Response(body, status, media_type=kind)

        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
        # Before the page's own catch-all routes.
        app.router.routes.insert(0, app.router.routes.pop())
