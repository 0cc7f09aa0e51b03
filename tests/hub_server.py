"""A Hub of our own on 127.0.0.1, for the real huggingface_hub client: only `HF_ENDPOINT` changes.

It speaks the part of the Hub's HTTP API that Tricksmith's client calls need: whoami with token scopes, model
info with files and scan status, tree, refs, resolve (ETag, commit, ranges, redirect of large files),
preupload, LFS in one piece and in parts, commits, branches, pull requests, repo create, settings and delete,
search, collections, webhooks, rate limits, sign-in by OpenID Connect, Spaces, datasets and buckets. Repos
live in memory; every request is logged; faults can be ordered.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub.base import Reply
from tests.hub.listing import Listing
from tests.hub.manners import Manner
from tests.hub.reading import Reading
from tests.hub.signing_in import SigningIn
from tests.hub.spaces import Runtime
from tests.hub.world import Blob, Collection, Fault, Repo, Request, User, is_large
from tests.hub.writing import Writing

__all__ = ["HubServer", "User"]


class _Handler(Reading, Writing, Listing, SigningIn):
    """All routes."""


_ID = r"((?:(?:spaces|datasets)/)?(?!api/)[^/]+/[^/]+)"
_API = r"/api/(?:models/|(?=spaces/|datasets/))((?:(?:spaces|datasets)/)?[^/]+/[^/]+)"
_SPACE = r"/api/(spaces/[^/]+/[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
    (methods, re.compile(pattern), handler)
    for methods, pattern, handler in (
        ("GET", r"/.well-known/openid-configuration", _Handler.openid),
        ("GET", r"/oauth/jwks", _Handler.jwks),
        ("GET", r"/oauth/authorize", _Handler.authorize),
        ("POST", r"/oauth/token", _Handler.token),
        ("GET", r"/oauth/userinfo", _Handler.userinfo),
        ("GET", r"/api/whoami-v2", _Handler.whoami),
        ("GET", r"/api/models", _Handler.models),
        ("GET", rf"{_API}", _Handler.info),
        ("GET", rf"{_API}/revision/([^/]+)", _Handler.info),
        ("GET", rf"{_API}/tree/([^/]+)(/.*)?", _Handler.tree),
        ("GET", rf"{_API}/refs", _Handler.refs),
        ("GET", rf"{_API}/commits/([^/]+)", _Handler.commits),
        ("GET", rf"{_API}/auth-check", _Handler.auth_check),
        ("POST", rf"{_API}/paths-info/([^/]+)", _Handler.paths_info),
        ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
        ("GET HEAD", r"/cdn/([0-9a-f]{64})/(.+)", _Handler.cdn),
        ("GET", rf"{_SPACE}/runtime", _Handler.runtime),
        ("POST", rf"{_SPACE}/hardware", _Handler.hardware),
        ("GET POST", rf"{_SPACE}/secrets", _Handler.secrets),
        ("PUT", rf"{_SPACE}/volumes", _Handler.volumes),
        ("POST", r"/api/buckets/([^/]+)/([^/]+)", _Handler.bucket),
        ("GET", r"/api/collections/(.+)", _Handler.collection),
        ("GET", r"/api/settings/webhooks", _Handler.list_webhooks),
        ("POST", r"/api/settings/webhooks", _Handler.add_webhook),
        ("POST", r"/api/repos/create", _Handler.create),
        ("DELETE", r"/api/repos/delete", _Handler.delete),
        ("PUT", rf"{_API}/settings", _Handler.settings),
        ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
        ("POST", rf"{_API}/preupload/([^/]+)", _Handler.preupload),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
        ("PUT", r"/lfs/([0-9a-f]{64})/(\d+)", _Handler.lfs_part),
        ("POST", r"/lfs/([0-9a-f]{64})/complete", _Handler.lfs_complete),
        ("POST", r"/lfs/([0-9a-f]{64})/verify", _Handler.lfs_verify),
        ("POST", rf"{_API}/commit/([^/]+)", _Handler.commit),
        ("POST", rf"{_API}/branch/([^/]+)", _Handler.add_branch),
        ("DELETE", rf"{_API}/branch/([^/]+)", _Handler.drop_branch),
        ("GET", rf"{_API}/discussions", _Handler.discussions),
    )
]


class HubServer:
    """The server and its world. Use as a context manager; `endpoint` goes into `HF_ENDPOINT`."""

    routes = _ROUTES

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.users: dict[str, User] = {
            "hf_smith": User("smith", ("forge",)),
            "hf_reader": User("reader", role="read"),
        }
        self.collections: dict[str, Collection] = {}
        self.webhooks: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size: int | None = None  # bytes; larger files go up in parts
        self.quota: int | None = None  # bytes of large files in all
        self.rate: tuple[int, float] | None = None  # requests in so many seconds
        self.page_size = 100
        self.runtimes: dict[str, Runtime] = {}
        self.buckets: dict[str, dict[str, Any]] = {}
        self.paid_hardware: set[str] = set()  # what costs more than this Hub's users pay
        self.client = ("client-of-the-space", "its secret")  # the one app that people sign in to
        self.codes: dict[str, dict[str, str]] = {}
        self.granted_scopes: str | None = None  # some providers grant other scopes than those asked for
        self.sign_in_s = 8 * 3600
        self.branches = True  # some Hubs know no branches
        self.bare_listings = False  # some Hubs list names alone
        self.redirects = True  # some serve large files themselves
        self.siblings = True  # some list files by the tree alone
        self.error_codes = True  # some say in plain text what is wrong, or by the status alone
        self.manner: Manner | None = None  # some leave fields out, some add their own
        self.linked = True  # some send no `X-Linked-*` headers
        self.ranges = True  # some always send the whole file
        self.upload_mode: str | None = None  # some take all files as "lfs", or all as "regular"
        self.dedupes = True  # some take an object again that they have
        self.conflict = 412  # some say 409
        self.etag = '"{}"'  # some send weak ones, or leave the quotes out
        self.away_by = 302  # how large files are pointed to elsewhere
        self.chunked = False  # some do not know beforehand how long an answer gets
        self.zips = False  # some compress what may be compressed
        self.discussions = True  # some do not list them
        self.pull_heads = True  # nor the heads of pull requests
        self.asks = True  # some listings give everything, whatever is asked for
        self.lock = threading.RLock()
        self._seen: list[float] = []
        hub = self

        class Handler(_Handler):
            world = hub

        self._handler = Handler
        self._port = 0
        self.away = False
        self._open()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.cdn = self.endpoint.replace("127.0.0.1", "localhost")  # another host in the client's eyes

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()

    def _open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def hang_up(self) -> None:
        """From here on connections are refused, and those that are open are cut."""
        self.away = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def listen(self) -> None:
        """Take connections again, at the same address."""
        self.away = False
        self._open()
        self._thread.start()

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
        repo.commit({name: Blob(data, is_large(name, data)) for name, data in files.items()}, "Upload")
        return repo

    def add_collection(self, slug: str, models: list[str]) -> Collection:
        """Put a collection of models on the Hub."""
        made = self.collections[slug] = Collection(slug, slug, [("model", model) for model in models])
        return made

    def repo(self, repo_id: str) -> Repo:
        return self.repos[repo_id]

    def fail(self, pattern: str, **what: Any) -> None:
        """Order a fault where `METHOD path` matches; `what` are the fields of `Fault`."""
        self.faults.append(Fault(re.compile(pattern), **what))

    def served(self, suffix: str) -> int:
        """How many body bytes of files that end in `suffix` went out so far."""
        return sum(r.sent for r in self.requests if r.path.split("?")[0].endswith(suffix))

    def calls(self, pattern: str) -> int:
        """How many requests matched `METHOD path` so far."""
        return sum(bool(re.search(pattern, f"{r.method} {r.path}")) for r in self.requests)

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.pattern.search(line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def limited(self) -> float | None:
        """Seconds to wait where more requests came than `rate` allows."""
        if self.rate is None:
            return None
        count, window = self.rate
        now = time.monotonic()
        with self.lock:
            self._seen = [at for at in self._seen if now - at < window]
            if len(self._seen) >= count:
                return max(0.01, round(window - (now - self._seen[0]), 2))
            self._seen.append(now)
        return None
