"""Where a sign-in leads back to: Gradio's button loses all of an address behind its first `&`."""

from __future__ import annotations

from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

_LOGIN = "/login/huggingface"
_TARGET = b"_target_url=/"


class SignIn:
    """ASGI middleware: the target that the button appended as it was becomes one quoted parameter."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, the query mended."""
        if scope["type"] == "http" and scope["path"] in (_LOGIN, "/logout"):
            query: bytes = scope["query_string"]
            if query.startswith(_TARGET):
                whole = query.removeprefix(b"_target_url=").decode("latin-1")
                scope = {**scope, "query_string": b"_target_url=" + quote(whole, safe="").encode()}
        await self._app(scope, receive, send)
