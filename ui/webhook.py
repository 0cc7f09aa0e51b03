"""The address to which the Hub's webhooks deliver, on the web page's own server."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from service.webhook import HEADER, LARGEST, PATH, Receipt, Receiver


def add_webhook(app: FastAPI, receiver: Receiver) -> None:
    """Answer `POST /webhooks/hub`."""

    async def deliver(request: Request) -> JSONResponse:
        secret = request.headers.get(HEADER)
        if (refused := receiver.allowed(secret)) is not None:
            return _answer(refused)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                break
        return _answer(receiver.receive(secret, body))

    app.add_api_route(PATH, deliver, methods=["POST"], include_in_schema=False)
    # Before the page's own catch-all routes.
    app.router.routes.insert(0, app.router.routes.pop())


def _answer(receipt: Receipt) -> JSONResponse:
    headers = {"Retry-After": "60"} if receipt.status == 429 else None
    return JSONResponse({"message": receipt.said}, status_code=receipt.status, headers=headers)
