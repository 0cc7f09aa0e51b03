"""What a Hub of our own holds: users with their tokens' rights, repos with their history, ordered faults."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

STAMP = "2026-01-01T00:00:00.000Z"
LFS_FROM = 10_000  # bytes; the Hub sends larger or binary files to its large file storage


def bare(repo_id: str) -> str:
    """`spaces/ns/name` as `ns/name`."""
    return "/".join(repo_id.split("/")[-2:])


def namespace(repo_id: str) -> str:
    """Whose repo it is."""
    return bare(repo_id).split("/")[0]


@dataclass
class User:
    """Whose token it is, and what it may do.

    `role` is `read`, `write` or `fineGrained`; a fine-grained token writes where `scopes` names the namespace
    with `repo.write`. A token with `expires` is an app's (OAuth): it writes only to what it `created`.
    """

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    granted: set[str] = field(default_factory=set)
    scopes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    expires: str | None = None
    created: set[str] = field(default_factory=set)

    def owns(self, repo_id: str) -> bool:
        return namespace(repo_id) in (self.name, *self.orgs)

    def may_write(self, repo_id: str, *, new: bool = False) -> bool:
        if not self.owns(repo_id):
            return False
        if self.expires is not None:
            return new or repo_id in self.created
        if self.role == "fineGrained":
            return "repo.write" in self.scopes.get(namespace(repo_id), ())
        return self.role == "write"

    def whoami(self) -> dict[str, Any]:
        token: dict[str, Any] = {"displayName": "test", "role": self.role, "createdAt": STAMP}
        if self.role == "fineGrained":
            scoped = [
                {"entity": {"_id": name, "type": "user", "name": name}, "permissions": list(permissions)}
                for name, permissions in self.scopes.items()
            ]
            token["fineGrained"] = {"canReadGatedRepos": bool(self.granted), "global": [], "scoped": scoped}
        auth: dict[str, Any] = {"type": "access_token", "accessToken": token}
        if self.expires is not None:
            auth = {"type": "oauth", "expiresAt": self.expires}
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in self.orgs]
        return {"type": "user", "name": self.name, "orgs": orgs, "auth": auth}


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

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"size": len(self.data), "blobId": self.oid}
        if self.lfs:
            size = len(self.data)
            data["lfs"] = {"sha256": self.sha256, "oid": self.sha256, "size": size, "pointerSize": 134}
        return data


@dataclass
class Commit:
    """One state of a repo."""

    oid: str
    files: dict[str, Blob]
    title: str


@dataclass
class Repo:
    """One repo: `refs` name the head commits, `prs` are its pull requests.

    The id of a Space is `spaces/ns/name`, that of a dataset `datasets/ns/name`.
    """

    id: str
    private: bool = False
    gated: bool | str = False
    disabled: bool = False
    unsafe: tuple[str, ...] = ()
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    prs: list[dict[str, Any]] = field(default_factory=list)
    created: str = STAMP
    modified: str = STAMP
    downloads: int = 0
    pipeline: str | None = "text-generation"
    library: str | None = "transformers"

    @property
    def files(self) -> dict[str, bytes]:
        """The files of `main`."""
        commit = self.at("main")
        return {name: blob.data for name, blob in commit.files.items()} if commit else {}

    def at(self, revision: str) -> Commit | None:
        oid = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, files: dict[str, Blob], title: str, ref: str = "main") -> Commit:
        seed = f"{self.id} {len(self.commits)} {title} {sorted((n, b.oid) for n, b in files.items())}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), files, title)
        self.commits.append(made)
        self.refs[ref] = made.oid
        return made

    def card_data(self, commit: Commit) -> dict[str, Any]:
        card = commit.files.get("README.md")
        match = re.match(rb"---\n(.*?)\n---", card.data, re.DOTALL) if card else None
        data = yaml.safe_load(match[1]) if match else {}
        return data if isinstance(data, dict) else {}

    def tags(self, commit: Commit) -> list[str]:
        """As the Hub derives them from card and files."""
        data = self.card_data(commit)
        bases = data.get("base_model") or []
        licence = data.get("license")
        found = [self.library, self.pipeline, *(data.get("tags") or []), "region:us"]
        found += ["safetensors"] * any(name.endswith(".safetensors") for name in commit.files)
        found += [f"base_model:{base}" for base in ([bases] if isinstance(bases, str) else bases)]
        return [str(tag) for tag in found if tag] + ([f"license:{licence}"] if licence else [])

    def to_json(self, commit: Commit, *, blobs: bool = False, scan: bool = False) -> dict[str, Any]:
        """The repo as the API gives it; `blobs` with sizes and digests, `scan` with the scanners' word."""
        siblings = [
            {"rfilename": name, **(blob.to_json() if blobs else {})} for name, blob in commit.files.items()
        ]
        data: dict[str, Any] = {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": bare(self.id),
            "modelId": bare(self.id),
            "author": namespace(self.id),
            "sha": commit.oid,
            "private": self.private,
            "gated": "auto" if self.gated is True else self.gated,
            "disabled": self.disabled,
            "lastModified": self.modified,
            "createdAt": self.created,
            "downloads": self.downloads,
            "likes": 0,
            "tags": self.tags(commit),
            "pipeline_tag": self.pipeline,
            "library_name": self.library,
            "siblings": siblings,
        }
        if card := self.card_data(commit):
            data["cardData"] = card
        if scan:
            issues = [{"path": path, "level": "unsafe"} for path in self.unsafe]
            data["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": issues}
        return data


@dataclass
class Collection:
    """A list of repos that somebody keeps."""

    slug: str
    title: str
    items: list[tuple[str, str]]  # type, id

    def to_json(self) -> dict[str, Any]:
        return {
            "slug": self.slug,
            "title": self.title,
            "owner": {"name": self.slug.split("/")[0], "type": "org"},
            "lastUpdated": STAMP,
            "position": 0,
            "private": False,
            "theme": "blue",
            "upvotes": 0,
            "items": [
                {"_id": f"{n:024}", "id": name, "type": kind, "position": n}
                for n, (kind, name) in enumerate(self.items)
            ],
        }


@dataclass
class Request:
    """One line of the log; `sent` counts the body bytes that went out, `came` those that came in."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    user: str | None
    status: int = 0
    sent: int = 0
    came: int = 0


@dataclass
class Fault:
    """What the next `times` requests that match suffer, after `skip` that do not.

    `status` (with `headers` and `body`): that answer; `cut`: the connection ends after so many bytes of the
    answer's body; `cut_in`: after so many of the request's; `flip`: one wrong byte; `etag`: a stale one;
    `delay`: seconds before the answer; `lost`: the work is done and the answer never comes.
    """

    pattern: re.Pattern[str]
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None
    cut_in: int | None = None
    flip: bool = False
    etag: str | None = None
    delay: float = 0.0
    lost: bool = False


class Answer(Exception):
    """A refusal, raised anywhere while a request is handled."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def is_large(name: str, data: bytes) -> bool:
    """Whether the Hub keeps such a file in its large file storage."""
    return name.endswith(".safetensors") or len(data) > LFS_FROM or b"\0" in data[:512]
