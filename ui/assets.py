"""The frontend's files from memory, and pages that tell the browser at once which of them they need.

Gradio reads and compresses a file anew for every request, which takes ten times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import brotli
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH = "/assets/"
# Their names hold a hash of what is in them.
_FOREVER = b"public, max-age=31536000, immutable"
_TYPES = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8"}


class Assets:
    """ASGI middleware: answers for scripts and styles in `folder`, and tells each page's head of those that
    `needed(path)` names.

    A file is read and compressed when it is first asked for, and kept. A page's styles come as one file: an
    entry that is disabled keeps the frontend from asking for each.
    """

    def __init__(self, app: ASGIApp, folder: Path, needed: Callable[[str], list[str]]) -> None:
        self._app, self._folder, self._needed = app, folder, needed
        self._kept: dict[str, tuple[bytes, bytes]] = {}
        self._heads: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        name = path.removeprefix(_PATH)
        if path.startswith(_PATH) and self._known(name):
            await self._answer(name, scope, send)
            return
        names = self._needed(path)
        if names and path not in self._heads:
            self._heads[path] = self._head(names)
        linked = _Linked(send, self._heads[path], _takes_brotli(scope)) if names else send
        await self._app(scope, receive, linked)

    def _head(self, names: list[str]) -> str:
        styles = [name for name in names if name.endswith(".css") and self._known(name)]
        whole = b"\n".join(self._kept[name][0] for name in styles)
        bundle = f"page-{hashlib.sha256(whole).hexdigest()[:12]}.css"
        self._keep(bundle, whole)
        links = [f'<link rel="stylesheet" href=".{_PATH}{bundle}">']
        links += [f'<link rel="stylesheet" disabled href=".{_PATH}{name}">' for name in styles]
        links += [
            f'<link rel="modulepreload" crossorigin href=".{_PATH}{name}">'
            for name in names
            if name.endswith(".js")
        ]
        return "".join(links)

    def _known(self, name: str) -> bool:
        if name in self._kept:
            return True
        if "/" in name or "\\" in name or Path(name).suffix not in _TYPES:
            return False
        path = self._folder / name
        if not path.is_file():
            return False
        self._keep(name, path.read_bytes())
        return True

    def _keep(self, name: str, plain: bytes) -> None:
        self._kept[name] = plain, _compressed(plain)

    async def _answer(self, name: str, scope: Scope, send: Send) -> None:
        plain, small = self._kept[name]
        takes = _takes_brotli(scope)
        body = small if takes else plain
        fields = [
            (b"content-type", _TYPES[Path(name).suffix]),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", _FOREVER),
            (b"vary", b"Accept-Encoding"),
            *([(b"content-encoding", b"br")] if takes else []),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def _takes_brotli(scope: Scope) -> bool:
    return "br" in Headers(scope=scope).get("accept-encoding", "")


def _compressed(plain: bytes) -> bytes:
    packed: bytes = brotli.compress(plain, brotli.MODE_TEXT, 5)
    return packed


class _Linked:
    """Sends on, an HTML page with `links` at the end of its head, and `packed`."""

    def __init__(self, send: Send, links: str, packed: bool) -> None:
        self._send, self._links, self._packed = send, links.encode(), packed
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = bytes(self._body).replace(b"</head>", self._links + b"</head>", 1)
            headers = MutableHeaders(raw=self._start["headers"])
            if self._packed:
                body = _compressed(body)
                headers["content-encoding"] = "br"
            headers.add_vary_header("Accept-Encoding")
            headers["content-length"] = str(len(body))
            await self._send(self._start)
            message = {"type": "http.response.body", "body": body}
        await self._send(message)
