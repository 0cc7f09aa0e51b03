"""What can be changed on a Hub of our own: repos, large files, commits, pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import yaml

from tests.hub.base import Reply
from tests.hub.spaces import Spaces, space_errors
from tests.hub.world import LFS_FROM, STAMP, Answer, Blob, Commit, Repo, bare, is_large

_RELATIONS = ("adapter", "merge", "quantized", "finetune")


class Writing(Spaces):
    """The routes that change something."""

    def create(self) -> Reply:
        wish, user = json.loads(self.body), self.someone()
        repo_id = f"{wish.get('organization') or user.name}/{wish['name']}"
        if (kind := wish.get("type", "model")) != "model":
            repo_id = f"{kind}s/{repo_id}"
        if not user.may_write(repo_id, new=True):
            raise Answer(403, "You don't have the rights to create a model under this namespace")
        if repo_id in self.world.repos:
            told = {"url": f"{self.world.endpoint}/{repo_id}", "error": "You already created this repo"}
            return self.json(told, 409)
        if kind == "space":
            self.take_space(repo_id, wish)
        repo = self.world.repos[repo_id] = Repo(repo_id, private=_is_private(wish))
        user.created.add(repo_id)
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repo.commit({".gitattributes": Blob(attributes)}, "initial commit")
        names = {"name": bare(repo_id), "id": bare(repo_id)}
        return self.json({"url": f"{self.world.endpoint}/{repo_id}", **names})

    def settings(self, repo_id: str) -> Reply:
        repo, wish = self.repo(repo_id, write=True), json.loads(self.body)
        if "visibility" in wish or "private" in wish:
            repo.private = _is_private(wish)
        repo.gated = wish.get("gated", repo.gated)
        return self.json({"private": repo.private, "gated": repo.gated})

    def delete(self) -> Reply:
        wish, user = json.loads(self.body), self.someone()
        repo_id = f"{wish.get('organization') or user.name}/{wish['name']}"
        del self.world.repos[self.repo(repo_id, write=True).id]
        return self.json({})

    def validate_yaml(self) -> Reply:
        """The Hub's rules in small: the front matter is a mapping with values of the right kinds."""
        match = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        errors = []
        try:
            data = yaml.safe_load(match[1]) if match else {}
            if not isinstance(data, dict):
                errors.append("metadata is not a mapping")
            elif not isinstance(data.get("license", ""), (str, list)):
                errors.append('"license" must be a string')
            elif json.loads(self.body).get("repoType") == "space":
                errors += space_errors(data)
            elif data.get("base_model_relation", "finetune") not in _RELATIONS:
                errors.append(f'"base_model_relation" must be one of {", ".join(_RELATIONS)}')
        except yaml.YAMLError:
            errors.append("metadata is not YAML")
        answer = {"errors": [{"message": e} for e in errors], "warnings": []}
        return self.json(answer, 400 if errors else 200)

    # large files

    def preupload(self, repo_id: str, revision: str) -> Reply:
        repo = self.repo(repo_id, write="create_pr" not in self.query)
        there = self.commit_of(repo, revision).files
        files = []
        for file in json.loads(self.body)["files"]:
            large = is_large(file["path"], base64.b64decode(file["sample"])) or file["size"] > LFS_FROM
            blob = there.get(file["path"])
            mode = self.world.upload_mode or ("lfs" if large else "regular")
            oid = (blob.sha256 if blob.lfs else blob.oid) if blob else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.json({"files": files})

    def lfs_batch(self, repo_id: str) -> Reply:
        """Where each object goes: nowhere if it is here, in parts if it is large, else in one piece."""
        self.repo(repo_id)
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if self.world.quota is not None and size + self._stored() > self.world.quota:
                answer["error"] = {"code": 403, "message": "storage limit reached"}
            elif oid not in self.world.objects or not self.world.dedupes:
                answer["actions"] = {
                    "upload": self._upload_action(oid, size),
                    "verify": {"href": f"{self.world.endpoint}/lfs/{oid}/verify", "header": {}},
                }
            objects.append(answer)
        return self.json({"transfer": "basic", "objects": objects})

    def _stored(self) -> int:
        return sum(map(len, self.world.objects.values()))

    def _upload_action(self, oid: str, size: int) -> dict[str, Any]:
        part = self.world.part_size
        if part is None or size <= part:
            return {"href": f"{self.world.endpoint}/lfs/{oid}", "header": {}}
        numbers = range(1, -(-size // part) + 1)
        urls = {str(n): f"{self.world.endpoint}/lfs/{oid}/{n}" for n in numbers}
        return {
            "href": f"{self.world.endpoint}/lfs/{oid}/complete",
            "header": {"chunk_size": str(part), **urls},
        }

    def lfs_put(self, oid: str) -> Reply:
        self._store(oid, self.body)
        return self.json({})

    def lfs_part(self, oid: str, number: str) -> Reply:
        self.world.parts.setdefault(oid, {})[int(number)] = self.body
        return self.json({}, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> Reply:
        parts = self.world.parts.pop(oid, {})
        asked = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        if sorted(parts) != asked:
            raise Answer(400, "parts are missing")
        self._store(oid, b"".join(parts[n] for n in asked))
        return self.json({})

    def lfs_verify(self, oid: str) -> Reply:
        if oid not in self.world.objects:
            raise Answer(404, "no such object")
        return self.json({})

    def _store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Answer(400, "content does not match its oid")
        self.world.objects[oid] = data

    # commits

    def commit(self, repo_id: str, revision: str) -> Reply:
        as_pr = "create_pr" in self.query
        user, repo = self.someone(), self.repo(repo_id, write=not as_pr)
        base = self.commit_of(repo, revision)
        files, title = self._applied(base)
        number = len(repo.prs) + 1
        made = repo.commit(files, title, f"refs/pr/{number}" if as_pr else revision)
        reply = {
            "success": True,
            "commitOid": made.oid,
            "commitUrl": f"{self.world.endpoint}/{repo_id}/commit/{made.oid}",
        }
        if as_pr:
            repo.prs.append({"num": number, "title": title, "author": user.name, "status": "open"})
            reply["pullRequestUrl"] = f"{self.world.endpoint}/{repo_id}/discussions/{number}"
        return self.json(reply)

    def _applied(self, base: Commit) -> tuple[dict[str, Blob], str]:
        """The files after the request's operations on `base`, and the commit's title."""
        files, title = dict(base.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                parent = value.get("parentCommit")
                if parent and not base.oid.startswith(parent):
                    message = "A commit has happened since. Please refresh and try again."
                    raise Answer(self.world.conflict, message)
            elif item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.world.objects:
                    raise Answer(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.world.objects[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Answer(404, "A file with this name doesn't exist", "EntryNotFound")
        return files, title

    def add_branch(self, repo_id: str, branch: str) -> Reply:
        if not self.world.branches:
            raise Answer(404, "Not found")
        repo = self.repo(repo_id, write=True)
        if branch in repo.refs:
            raise Answer(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.refs[branch] = self.commit_of(repo, start).oid
        return self.json({})

    def drop_branch(self, repo_id: str, branch: str) -> Reply:
        if self.repo(repo_id, write=True).refs.pop(branch, None) is None:
            raise Answer(404, "Reference not found", "RevisionNotFound")
        return self.json({})

    def discussions(self, repo_id: str) -> Reply:
        repo = self.repo(repo_id)
        if not self.world.discussions:
            raise Answer(404, "Not found")
        listed = [
            {
                "num": pr["num"],
                "title": pr["title"],
                "status": pr["status"],
                "author": {"name": pr["author"]},
                "createdAt": STAMP,
                "isPullRequest": True,
                "repo": {"name": repo.id, "type": "model"},
            }
            for pr in repo.prs
        ]
        return self.json({"discussions": listed, "count": len(listed), "start": 0})


def _is_private(wish: dict[str, Any]) -> bool:
    return wish.get("visibility") == "private" or bool(wish.get("private"))
