"""What can be read of a Hub of our own: who asks, repos, trees, files."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from tests.hub.base import BaseHandler, Reply
from tests.hub.world import STAMP, Answer


class Reading(BaseHandler):
    """The routes that change nothing."""

    def whoami(self) -> Reply:
        return self.json(self.someone().whoami())

    def info(self, repo_id: str, revision: str = "main") -> Reply:
        if (new := self.world.renamed.get(repo_id)) is not None:
            location = self.path.replace(repo_id, new, 1)
            return lambda: self.send(307, b"", {"Location": location})
        repo = self.repo(repo_id)
        commit = self.commit_of(repo, revision)
        blobs = "blobs" in self.query and not self.world.bare_listings
        data = repo.to_json(commit, blobs=blobs, scan="securityStatus" in self.query)
        if not self.world.siblings:
            del data["siblings"]
        return self.json(data)

    def auth_check(self, repo_id: str) -> Reply:
        repo = self.repo(repo_id)
        self._gate(repo_id)
        return self.json({"id": repo.id})

    def refs(self, repo_id: str) -> Reply:
        repo = self.repo(repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        found: dict[str, Any] = {"branches": branches, "tags": [], "converts": []}
        if "include_prs" in self.query and self.world.pull_heads:
            found["pullRequests"] = [
                {"name": name, "ref": name, "targetCommit": oid}
                for name, oid in repo.refs.items()
                if name.startswith("refs/pr/")
            ]
        return self.json(found)

    def commits(self, repo_id: str, revision: str) -> Reply:
        repo = self.repo(repo_id)
        self.commit_of(repo, revision)
        listed = [
            {"id": c.oid, "title": c.title, "message": "", "authors": [{"user": "smith"}], "date": STAMP}
            for c in reversed(repo.commits)
        ]
        return self.json(listed)

    def tree(self, repo_id: str, revision: str, folder: str = "") -> Reply:
        commit = self.commit_of(self.repo(repo_id), revision)
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        if prefix and not any(name.startswith(prefix) for name in commit.files):
            raise Answer(404, f"{folder} does not exist", "EntryNotFound")
        listed: dict[str, dict[str, Any]] = {}
        for name, blob in commit.files.items():
            if not name.startswith(prefix):
                continue
            inner, slash, _ = name.removeprefix(prefix).partition("/")
            if slash and not deep:
                path = prefix + inner
                listed[path] = {"type": "directory", "path": path, "oid": blob.oid, "size": 0}
            else:
                listed[name] = {"type": "file", "path": name, **blob.to_json(), "oid": blob.oid}
        return self.json(list(listed.values()))

    def paths_info(self, repo_id: str, revision: str) -> Reply:
        commit = self.commit_of(self.repo(repo_id), revision)
        form = self.body[:1] != b"{"
        paths = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        found = [(path, commit.files[path]) for path in paths if path in commit.files]
        return self.json([{"type": "file", "path": p, **b.to_json(), "oid": b.oid} for p, b in found])

    def resolve(self, repo_id: str, revision: str, name: str) -> Reply:
        if (new := self.world.renamed.get(repo_id)) is not None:
            location = self.path.replace(repo_id, new, 1)
            return lambda: self.send(307, b"", {"Location": location})
        repo = self.repo(repo_id)
        commit = self.commit_of(repo, revision)
        self._gate(repo_id)
        blob = commit.files.get(name)
        if blob is None:
            raise Answer(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not blob.lfs or not self.world.redirects:
            etag = f'"{blob.sha256 if blob.lfs else blob.oid}"'
            return lambda: self.send_file(blob.data, {**headers, "ETag": etag})
        # Large files live elsewhere, and the client must not send its token there.
        self.world.objects[blob.sha256] = blob.data
        headers["Location"] = f"{self.world.cdn}/cdn/{blob.sha256}/{name}"
        if self.world.linked:
            headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        else:
            headers["ETag"] = f'"{blob.sha256}"'
        return lambda: self.send(self.world.away_by, b"", headers)

    def cdn(self, sha256: str, name: str) -> Reply:
        data = self.world.objects[sha256]
        return lambda: self.send_file(data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _gate(self, repo_id: str) -> None:
        repo = self.world.repos[repo_id]
        let_in = self.user is not None and (repo_id in self.user.granted or self.user.owns(repo_id))
        if repo.gated and not let_in:
            status = 403 if self.user else 401
            raise Answer(status, f"Access to model {repo_id} is restricted", "GatedRepo")
