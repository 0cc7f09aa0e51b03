"""The addresses that open pages ask: `GET /live/job?id=...&seen=...`, `/live/compare?id=...&seen=...` and
`/live/queue?seen=...`.

Each answers 204 where nothing changed since the version `seen`, else one JSON object of HTML pieces.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from tricks import TricksmithError
from ui.pages.live import Live, Snapshot, refused
from ui.pages.visitor import Visitor, visitor

_LONGEST = 64  # characters of an id
_HEADERS = {"Cache-Control": "no-store"}


def add_live(app: FastAPI, live: Live) -> None:
    """Answer these addresses."""

    async def job(request: Request) -> Response:
        job_id = request.query_params.get("id", "")[:_LONGEST]
        try:
            known = live.known(job_id, visitor(request))
        except TricksmithError as error:
            known = refused(error)
        if known is not None:
            return _said(request, known)
        return await run_in_threadpool(_answer, request, lambda asker: live.job(job_id, asker))

    # Not async: they read Redis, so each runs on a thread of the server's pool.

    def compare(request: Request) -> Response:
        comparison_id = request.query_params.get("id", "")[:_LONGEST]
        return _answer(request, lambda asker: live.comparison(comparison_id, asker))

    def queue(request: Request) -> Response:
        return _answer(request, live.queue)

    for path, handler in (("/live/job", job), ("/live/compare", compare), ("/live/queue", queue)):
        app.add_api_route(path, handler, methods=["GET"], include_in_schema=False)
        # Before the pages' own catch-all routes.
        app.router.routes.insert(0, app.router.routes.pop())


def _answer(request: Request, look: Callable[[Visitor], Snapshot]) -> Response:
    try:
        found = look(visitor(request))
    except TricksmithError as error:
        found = refused(error)
    return _said(request, found)


def _said(request: Request, found: Snapshot) -> Response:
    if request.query_params.get("seen") == found.version:
        return Response(status_code=204, headers=_HEADERS)
    return Response(found.body, media_type="application/json", headers=_HEADERS)
