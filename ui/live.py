"""The addresses that open pages ask: `GET /live/job?id=...`, `/live/papers?id=...`,
`/live/compare?id=...` and `/live/queue`, each with `seen=...`; and `/live/picture?id=...`.

Each answers 204 where nothing changed since the version `seen`, else one JSON object of HTML pieces; the
picture is a PNG, or 404.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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

    def papers(request: Request) -> Response:
        job_id = request.query_params.get("id", "")[:_LONGEST]
        return _answer(request, lambda asker: live.papers(job_id, asker))

    def picture(request: Request) -> Response:
        try:
            png = live.picture(request.query_params.get("id", "")[:_LONGEST], visitor(request))
        except TricksmithError:
            png = None
        return Response(png, 200 if png else 404, media_type="image/png", headers=_HEADERS)

    for handler in (job, papers, picture, compare, queue):
        # Before the pages' own catch-all routes, and without FastAPI's care for arguments: these are the
        # addresses that every open page asks each second.
        app.router.routes.insert(0, Route(f"/live/{handler.__name__}", handler, methods=["GET"]))


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
