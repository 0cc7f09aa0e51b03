"""At the door of the web side: how large a request may be, and how many may come from one address."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 1 << 20  # bytes of one request's body; nobody uploads anything here
KNOWN_CLIENTS = 10_000


class Rates:
    """A bucket per client: `per_second` requests come in, at most `burst` lie there."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Whether this client may ask once more; counts it where it may."""
        now = self._clock()
        left, at = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now)
        if len(self._buckets) > KNOWN_CLIENTS:
            self._buckets.popitem(last=False)
        return allowed


def address(scope: Scope) -> str:
    """Where a request comes from. Behind a proxy that uvicorn trusts, that is what the proxy says."""
    return str((scope.get("client") or ("?",))[0])


class Door:
    """ASGI middleware: 413 for a body over `largest` bytes, 429 for a client that asks too often.

    `who` says whose bucket a request counts in.
    """

    def __init__(
        self,
        app: ASGIApp,
        rates: Rates | None,
        largest: int = LARGEST,
        who: Callable[[Scope], str] = address,
    ) -> None:
        self._app, self._rates, self._largest, self._who = app, rates, largest, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._rates is not None and not self._rates.allows(self._who(scope)):
            await _refuse(send, 429, "too many requests; wait a minute", (b"retry-after", b"60"))
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._largest:
            await _refuse(send, 413, f"a request has at most {self._largest} bytes here")
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._largest:
                # As if the client had gone: what came without a length gets no more said.
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, counted, send)


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode() + b"\n"
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
