"""A Hub of our own on 127.0.0.1, for the real huggingface_hub client: only `HF_ENDPOINT` changes.

It speaks the part of the Hub's HTTP API that Tricksmith's client calls need: whoami, model info with files
and scan status, tree, resolve (ETag, commit, ranges, redirect of large files), preupload, LFS batch, commit,
pull requests, repo create, settings and delete. Repos live in memory; every request is logged; faults can be
ordered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_STAMP = "2026-01-01T00:00:00.000Z"
_LFS_FROM = 10_000  # bytes; the Hub sends larger or binary files to its large file storage


@dataclass
class User:
    """Whose token it is: its namespaces, its role (`read` or `write`), the gated repos it was let into."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    granted: set[str] = field(default_factory=set)

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass
class Blob:
    """One file's content; `lfs` as the Hub stores it apart."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The Git blob id (for a large file the Hub's client only asks for its SHA-256)."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Commit:
    oid: str
    files: dict[str, Blob]
    title: str


@dataclass
class Repo:
    """One model repo: `refs` name the head commits, `prs` are its pull requests."""

    id: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    unsafe: tuple[str, ...] = ()
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    prs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of `main`."""
        return {name: blob.data for name, blob in self.at("main").files.items()}  # type: ignore[union-attr]

    def at(self, revision: str) -> Commit | None:
        oid = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, files: dict[str, Blob], title: str, ref: str = "main") -> Commit:
        seed = f"{self.id} {len(self.commits)} {title} {sorted((n, b.oid) for n, b in files.items())}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), files, title)
        self.commits.append(made)
        self.refs[ref] = made.oid
        return made


@dataclass
class Request:
    """One line of the log; `sent` counts the body bytes that went out."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    user: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """The next `times` requests that match fail: with `status`, or cut after `cut` body bytes."""

    pattern: re.Pattern[str]
    times: int
    status: int | None
    headers: dict[str, str]
    cut: int | None
    flip: bool


class Answer(Exception):
    """A refusal, raised anywhere while a request is handled."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class HubServer:
    """The server and its world. Use as a context manager; `endpoint` goes into `HF_ENDPOINT`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.users: dict[str, User] = {
            "hf_smith": User("smith", ("forge",)),
            "hf_reader": User("reader", role="read"),
        }
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.objects: dict[str, bytes] = {}
        self.bare_listings = False  # some Hubs list names alone
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            world = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = self.endpoint.replace("127.0.0.1", "localhost")  # another host in the client's eyes

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_model(
        self, repo_id: str, folder: Path | dict[str, bytes], *, gated: bool = False, private: bool = False
    ) -> Repo:
        """Put a repo on the Hub (or a new commit on it) with the files of a folder, or of a dict."""
        if isinstance(folder, Path):
            files = {
                p.relative_to(folder).as_posix(): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        else:
            files = folder
        repo = self.repos.setdefault(repo_id, Repo(repo_id))
        repo.gated, repo.private = gated, private
        repo.commit({name: Blob(data, _is_large(name, data)) for name, data in files.items()}, "Upload")
        return repo

    def repo(self, repo_id: str) -> Repo:
        return self.repos[repo_id]

    def fail(
        self,
        pattern: str,
        *,
        times: int = 1,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        flip: bool = False,
    ) -> None:
        """Order a fault where `METHOD path` matches: a status, a cut connection, or one wrong byte."""
        self.faults.append(Fault(re.compile(pattern), times, status, headers or {}, cut, flip))

    def served(self, suffix: str) -> int:
        """How many body bytes of files that end in `suffix` went out so far."""
        return sum(r.sent for r in self.requests if r.path.split("?")[0].endswith(suffix))

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.pattern.search(line):
                    fault.times -= 1
                    return fault
        return None


def _is_large(name: str, data: bytes) -> bool:
    return name.endswith(".safetensors") or len(data) > _LFS_FROM or b"\0" in data[:512]


class _Handler(BaseHTTPRequestHandler):
    """Routes a request to a method by the table at the end of this module."""

    world: HubServer
    protocol_version = "HTTP/1.1"
    record: Request
    fault: Fault | None

    def log_message(self, format: str, *args: object) -> None:
        """The log is `HubServer.requests`."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def _route(self) -> None:
        parts = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.world.users.get(token)
        path = unquote(parts.path)
        self.query = parse_qs(parts.query)
        self.record = Request(
            self.command, path, self.query, self.headers.get("Range"), self.user.name if self.user else None
        )
        self.world.requests.append(self.record)
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self._chunked()
            else self._dechunk()
        )
        self.fault = self.world.take_fault(f"{self.command} {path}")
        try:
            if self.fault is not None and self.fault.status is not None:
                self._send(self.fault.status, b"{}", self.fault.headers)
                return
            if token and self.user is None:
                raise Answer(401, "Invalid credentials in Authorization header")
            for method, pattern, handler in _ROUTES:
                if (match := pattern.fullmatch(parts.path)) and self.command in method:
                    with self.world.lock:
                        reply = handler(self, *(unquote(group or "") for group in match.groups()))
                    reply()
                    return
            raise Answer(404, f"no such route: {self.command} {path}")
        except Answer as answer:
            headers = {"X-Error-Message": answer.message}
            if answer.code:
                headers["X-Error-Code"] = answer.code
            self._send(answer.status, json.dumps({"error": answer.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _route

    def _chunked(self) -> bool:
        return "chunked" in (self.headers.get("Transfer-Encoding") or "")

    def _dechunk(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.record.status = status
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut is not None:
            body = body[: self.fault.cut]
            self.close_connection = True
        if self.fault is not None and self.fault.flip and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        for begin in range(0, len(body), 1 << 16):  # piecewise: a client that hangs up early is seen
            self.wfile.write(body[begin : begin + (1 << 16)])
            self.record.sent += len(body[begin : begin + (1 << 16)])
        if self.close_connection:
            self.wfile.flush()

    def _json(self, data: Any, status: int = 200) -> Callable[[], None]:
        return lambda: self._send(status, json.dumps(data).encode())

    def _repo(self, repo_id: str, *, write: bool = False) -> Repo:
        repo = self.world.repos.get(repo_id)
        if repo is None or (repo.private and (self.user is None or not self.user.owns(repo_id))):
            raise Answer(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise Answer(403, "Access to this resource is disabled.")
        if write and (self.user is None or not self.user.owns(repo_id) or self.user.role != "write"):
            raise Answer(403, "You have no right to write here")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # who

    def whoami(self) -> Callable[[], None]:
        if self.user is None:
            raise Answer(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in self.user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.user.role}}
        return self._json({"type": "user", "name": self.user.name, "orgs": orgs, "auth": auth})

    # read

    def info(self, repo_id: str, revision: str = "main") -> Callable[[], None]:
        if (new := self.world.renamed.get(repo_id)) is not None:
            location = self.path.replace(repo_id, new, 1)
            return lambda: self._send(307, b"", {"Location": location})
        repo = self._repo(repo_id)
        commit = self._commit(repo, revision)
        detailed = "blobs" in self.query and not self.world.bare_listings
        data: dict[str, Any] = {
            "_id": hashlib.sha1(repo_id.encode()).hexdigest()[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": repo.disabled,
            "lastModified": _STAMP,
            "createdAt": _STAMP,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [
                {"rfilename": name, **(_blob_json(blob) if detailed else {})}
                for name, blob in commit.files.items()
            ],
        }
        card = commit.files.get("README.md")
        if card and (match := re.match(rb"---\n(.*?)\n---", card.data, re.DOTALL)):
            data["cardData"] = yaml.safe_load(match[1])
        if "securityStatus" in self.query:
            issues = [{"path": path, "level": "unsafe"} for path in repo.unsafe]
            data["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": issues}
        return self._json(data)

    def tree(self, repo_id: str, revision: str, folder: str = "") -> Callable[[], None]:
        commit = self._commit(self._repo(repo_id), revision)
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        entries = []
        for name, blob in commit.files.items():
            if name.startswith(prefix):
                entries.append({"type": "file", "path": name, **_blob_json(blob), "oid": blob.oid})
        return self._json(entries)

    def paths_info(self, repo_id: str, revision: str) -> Callable[[], None]:
        commit = self._commit(self._repo(repo_id), revision)
        paths = (
            json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        )
        found = {path: commit.files[path] for path in paths if path in commit.files}
        return self._json(
            [
                {"type": "file", "path": path, **_blob_json(blob), "oid": blob.oid}
                for path, blob in found.items()
            ]
        )

    def resolve(self, repo_id: str, revision: str, name: str) -> Callable[[], None]:
        repo = self._repo(repo_id)
        commit = self._commit(repo, revision)
        if repo.gated and not (self.user and (repo.id in self.user.granted or self.user.owns(repo.id))):
            raise Answer(403 if self.user else 401, f"Access to model {repo.id} is restricted", "GatedRepo")
        blob = commit.files.get(name)
        if blob is None:
            raise Answer(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return lambda: self._send_file(blob.data, {**headers, "ETag": f'"{blob.oid}"'})
        # Large files live elsewhere, and the client must not send its token there.
        self.world.objects[blob.sha256] = blob.data
        headers |= {
            "X-Linked-ETag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.data)),
            "Location": f"{self.world.cdn}/cdn/{blob.sha256}/{name}",
        }
        return lambda: self._send(302, b"", headers)

    def cdn(self, sha256: str, name: str) -> Callable[[], None]:
        data = self.world.objects[sha256]
        return lambda: self._send_file(data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self._send(200, data, headers)
            return
        begin, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if begin >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self._send(206, data[begin : end + 1], headers)

    # write

    def create(self) -> Callable[[], None]:
        wish = json.loads(self.body)
        if self.user is None:
            raise Answer(401, "Invalid username or password.")
        repo_id = f"{wish.get('organization') or self.user.name}/{wish['name']}"
        if self.user.role != "write" or not self.user.owns(repo_id):
            raise Answer(403, "You don't have the rights to create a model under this namespace")
        if repo_id in self.world.repos:
            raise Answer(409, "You already created this model repo")
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        repo = self.world.repos[repo_id] = Repo(repo_id, private=private)
        repo.commit(
            {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}, "initial commit"
        )
        return self._json({"url": f"{self.world.endpoint}/{repo_id}", "name": repo_id, "id": repo_id})

    def settings(self, repo_id: str) -> Callable[[], None]:
        repo, wish = self._repo(repo_id, write=True), json.loads(self.body)
        if "visibility" in wish or "private" in wish:
            repo.private = wish.get("visibility") == "private" or bool(wish.get("private"))
        return self._json({"private": repo.private})

    def delete(self) -> Callable[[], None]:
        wish = json.loads(self.body)
        repo_id = f"{wish.get('organization') or (self.user.name if self.user else '')}/{wish['name']}"
        del self.world.repos[self._repo(repo_id, write=True).id]
        return self._json({})

    def validate_yaml(self) -> Callable[[], None]:
        """The Hub's rules in small: the front matter is a mapping with values of the right kinds."""
        content, errors = json.loads(self.body)["content"], []
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else {}
            if not isinstance(data, dict):
                errors.append("metadata is not a mapping")
            elif not isinstance(data.get("license", ""), (str, list)):
                errors.append('"license" must be a string')
            elif data.get("base_model_relation", "finetune") not in (
                "adapter",
                "merge",
                "quantized",
                "finetune",
            ):
                errors.append('"base_model_relation" must be one of adapter, merge, quantized, finetune')
        except yaml.YAMLError:
            errors.append("metadata is not YAML")
        return self._json(
            {"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200
        )

    def preupload(self, repo_id: str, revision: str) -> Callable[[], None]:
        repo = self._repo(repo_id, write="create_pr" not in self.query)
        there = self._commit(repo, revision).files
        files = []
        for file in json.loads(self.body)["files"]:
            large = _is_large(file["path"], base64.b64decode(file["sample"])) or file["size"] > _LFS_FROM
            blob = there.get(file["path"])
            mode = "lfs" if large else "regular"
            oid = (blob.sha256 if blob.lfs else blob.oid) if blob else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def lfs_batch(self, repo_id: str) -> Callable[[], None]:
        self._repo(repo_id)
        objects = []
        for item in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.world.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.world.endpoint}/lfs/{item['oid']}", "header": {}}
                }
            objects.append(answer)
        return self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> Callable[[], None]:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Answer(400, "content does not match its oid")
        self.world.objects[sha256] = self.body
        return self._json({})

    def commit(self, repo_id: str, revision: str) -> Callable[[], None]:
        as_pr = "create_pr" in self.query
        repo = self._repo(repo_id, write=not as_pr)
        if self.user is None:
            raise Answer(401, "Invalid username or password.")
        base = self._commit(repo, revision)
        files, title = dict(base.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                parent = value.get("parentCommit")
                if parent and not as_pr and not base.oid.startswith(parent):
                    raise Answer(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.world.objects:
                    raise Answer(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.world.objects[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Answer(404, "A file with this name doesn't exist", "EntryNotFound")
        number = len(repo.prs) + 1
        made = repo.commit(files, title, f"refs/pr/{number}" if as_pr else revision)
        reply = {
            "success": True,
            "commitOid": made.oid,
            "commitUrl": f"{self.world.endpoint}/{repo_id}/commit/{made.oid}",
        }
        if as_pr:
            repo.prs.append({"num": number, "title": title, "author": self.user.name, "status": "open"})
            reply["pullRequestUrl"] = f"{self.world.endpoint}/{repo_id}/discussions/{number}"
        return self._json(reply)

    def discussions(self, repo_id: str) -> Callable[[], None]:
        repo = self._repo(repo_id)
        listed = [
            {
                "num": pr["num"],
                "title": pr["title"],
                "status": pr["status"],
                "author": {"name": pr["author"]},
                "createdAt": _STAMP,
                "isPullRequest": True,
                "repo": {"name": repo.id, "type": "model"},
            }
            for pr in repo.prs
        ]
        return self._json({"discussions": listed, "count": len(listed), "start": 0})


def _blob_json(blob: Blob) -> dict[str, Any]:
    data: dict[str, Any] = {"size": len(blob.data), "blobId": blob.oid}
    if blob.lfs:
        data["lfs"] = {"sha256": blob.sha256, "oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return data


_ID = r"((?!api/)[^/]+/[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Callable[[], None]]]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (
        ("GET", r"/api/whoami-v2", _Handler.whoami),
        ("GET", rf"/api/models/{_ID}", _Handler.info),
        ("GET", rf"/api/models/{_ID}/revision/([^/]+)", _Handler.info),
        ("GET", rf"/api/models/{_ID}/tree/([^/]+)(/.*)?", _Handler.tree),
        ("POST", rf"/api/models/{_ID}/paths-info/([^/]+)", _Handler.paths_info),
        ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
        ("GET HEAD", r"/cdn/([0-9a-f]{64})/(.+)", _Handler.cdn),
        ("POST", r"/api/repos/create", _Handler.create),
        ("DELETE", r"/api/repos/delete", _Handler.delete),
        ("PUT", rf"/api/models/{_ID}/settings", _Handler.settings),
        ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
        ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", _Handler.preupload),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
        ("POST", rf"/api/models/{_ID}/commit/([^/]+)", _Handler.commit),
        ("GET", rf"/api/models/{_ID}/discussions", _Handler.discussions),
    )
]
