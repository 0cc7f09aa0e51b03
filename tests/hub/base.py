"""One request to a Hub of our own: taken in, held against ordered faults, answered."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.world import Answer, Commit, Fault, Repo, Request, User

if TYPE_CHECKING:
    from tests.hub_server import HubServer

Reply = Callable[[], None]


class Dropped(ConnectionError):
    """The connection was cut on purpose."""


class BaseHandler(BaseHTTPRequestHandler):
    """Routes a request by the table that `HubServer` holds."""

    world: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    record: Request
    fault: Fault | None
    user: User | None
    query: dict[str, list[str]]
    body: bytes

    def log_message(self, format: str, *args: object) -> None:
        """The log is `HubServer.requests`."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def handle_request(self) -> None:
        """Take one request in and answer it."""
        if self.world.away:
            raise Dropped
        parts = urlsplit(self.path)
        said = self.headers.get("Authorization") or ""
        token = "" if said.startswith("Basic ") else said.removeprefix("Bearer ")
        self.user = self.world.users.get(token)
        path = unquote(parts.path)
        self.query = parse_qs(parts.query)
        name = self.user.name if self.user else None
        self.record = Request(self.command, path, self.query, self.headers.get("Range"), name)
        self.world.requests.append(self.record)
        self.fault = self.world.take_fault(f"{self.command} {path}")
        self.body = self._take_body()
        try:
            if self.fault is not None:
                time.sleep(self.fault.delay)
                if self.fault.status is not None:
                    self.send(self.fault.status, self.fault.body, self.fault.headers)
                    return
            if (wait := self.world.limited()) is not None:
                self.send(429, b"{}", {"Retry-After": str(wait)})
                return
            if token and self.user is None:
                raise Answer(401, "Invalid credentials in Authorization header")
            self._answer(parts.path)
        except Answer as answer:
            self._refuse(answer)

    def _refuse(self, answer: Answer) -> None:
        if not self.world.error_codes:
            self.send(answer.status, answer.message.encode(), {"Content-Type": "text/plain"})
            return
        headers = {"X-Error-Message": answer.message}
        if answer.code:
            headers["X-Error-Code"] = answer.code
        self.send(answer.status, json.dumps({"error": answer.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _answer(self, path: str) -> None:
        for methods, pattern, handler in self.world.routes:
            if (match := pattern.fullmatch(path)) and self.command in methods.split():
                with self.world.lock:
                    reply = handler(self, *(unquote(group or "") for group in match.groups()))
                if self.fault is not None and self.fault.lost:
                    raise Dropped
                reply()
                return
        raise Answer(404, f"no such route: {self.command} {path}")

    def _take_body(self) -> bytes:
        """The request's body, as far as an ordered fault lets it come."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            return self._dechunk()
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault is not None and self.fault.cut_in is not None and length > self.fault.cut_in:
            self.record.came = len(self.rfile.read(self.fault.cut_in))
            raise Dropped
        body = self.rfile.read(length)
        self.record.came = len(body)
        return body

    def _dechunk(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    # answers

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.record.status = status
        self.send_response(status)
        headers = {"Content-Type": "application/json", **(headers or {})}
        if self.fault is not None and self.fault.etag is not None:
            headers = {key: self.fault.etag if "etag" in key.lower() else headers[key] for key in headers}
        if self.fault is not None and self.fault.flip and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        etags = {key: value for key, value in headers.items() if "etag" in key.lower()}
        headers |= {key: self.world.etag.format(value.strip('"')) for key, value in etags.items()}
        if self.world.zips and status == 200 and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        for key, value in headers.items():
            self.send_header(key, value)
        if self.world.chunked and self.command != "HEAD" and status not in (204, 304) and body:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut is not None:
            body = body[: self.fault.cut]
            self.close_connection = True
        for begin in range(0, len(body), 1 << 16):  # piecewise: a client that hangs up early is seen
            self.wfile.write(body[begin : begin + (1 << 16)])
            self.record.sent += len(body[begin : begin + (1 << 16)])
        if self.close_connection:
            self.wfile.flush()

    def json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
        data = self.world.manner(self.record.path, data) if self.world.manner else data
        return lambda: self.send(status, json.dumps(data).encode(), headers)

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or not self.world.ranges:
            self.send(200, data, headers)
            return
        begin, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if begin >= len(data):
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self.send(206, data[begin : end + 1], headers)

    # rights

    def sees(self, repo: Repo) -> bool:
        return not repo.private or (self.user is not None and self.user.owns(repo.id))

    def repo(self, repo_id: str, *, write: bool = False) -> Repo:
        repo = self.world.repos.get(repo_id)
        if repo is None or not self.sees(repo):
            raise Answer(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise Answer(403, "Access to this resource is disabled.")
        if write and (self.user is None or not self.user.may_write(repo_id)):
            raise Answer(403, "You have no right to write here")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def someone(self) -> User:
        if self.user is None:
            raise Answer(401, "Invalid username or password.")
        return self.user
