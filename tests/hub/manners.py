"""How other Hubs answer: with nothing that may be left out, or with much that nobody asked for.

A manner is the answer's JSON -> what is sent in its place; `terse` keeps what the client cannot do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Manner = Callable[[str, Any], Any]

# Path -> the fields that stay; the first pattern that fits counts.
_KEPT: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"/api/whoami-v2", ("name",)),
    (r"/api/models", ("id",)),
    (r".*/tree/.*", ("type", "path", "size", "oid", "lfs")),
    (r".*/preupload/.*", ("path", "uploadMode", "shouldIgnore")),
    (r".*/objects/batch", ("oid", "size", "actions", "error")),
    (r".*/commit/[^/]+", ("commitOid", "commitUrl", "pullRequestUrl")),
    (r".*/discussions", ("num", "title", "status", "author", "createdAt", "isPullRequest")),
    (r".*/refs", ("name", "ref", "targetCommit")),
    (r"/api/repos/create", ("url",)),
    (r"/api/models/[^/]+/[^/]+(/revision/[^/]+)?", ("id", "sha", "siblings", "rfilename")),
)
_LISTS = ("files", "objects", "discussions", "siblings", "branches", "converts", "tags", "pullRequests")


def terse(path: str, data: Any) -> Any:
    """Without every field that the client can do without: no sizes, digests, dates, tags, visibility."""
    kept = next((fields for pattern, fields in _KEPT if re.fullmatch(pattern, path)), None)
    return data if kept is None else _only(data, kept)


def _only(data: Any, kept: tuple[str, ...]) -> Any:
    if isinstance(data, list):
        return [_only(item, kept) for item in data]
    if not isinstance(data, dict):
        return data
    lists = {name: _only(value, kept) for name, value in data.items() if name in _LISTS and value}
    if any(name in data for name in _LISTS) and "sha" not in data:
        return {**data, **lists}  # an envelope
    found = {name: value for name, value in (data | lists).items() if name in kept}
    if isinstance(found.get("lfs"), dict):  # as Git's own pointers have it
        found["lfs"] = {"oid": found["lfs"]["oid"], "size": found["lfs"]["size"]}
    return found


def chatty(path: str, data: Any) -> Any:
    """With fields that nobody knows, at every level."""
    if isinstance(data, list):
        return [chatty(path, item) for item in data]
    if not isinstance(data, dict) or "chunk_size" in data:
        return data
    return {name: chatty(path, value) for name, value in data.items()} | {"xNote": {"kind": ["new"]}}
