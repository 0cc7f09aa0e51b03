"""Search, collections and webhooks of a Hub of our own."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from tests.hub.base import BaseHandler, Reply
from tests.hub.world import Answer, Repo

_ORDER = {"createdAt": "created", "lastModified": "modified", "downloads": "downloads"}


class Listing(BaseHandler):
    """Lists, page by page."""

    def models(self) -> Reply:
        """The repos that match, newest first in the order asked for, with a `Link` to the next page."""
        models = [repo for repo in self.world.repos.values() if repo.id.count("/") == 1]
        found = [repo for repo in models if self.sees(repo) and self._matches(repo)]
        order = _ORDER.get(self._one("sort") or "", "modified")
        found.sort(key=lambda repo: getattr(repo, order), reverse=True)
        size = min(int(self._one("limit") or self.world.page_size), self.world.page_size)
        begin = int(self._one("cursor") or 0)
        page = found[begin : begin + size]
        headers = {}
        if begin + size < len(found):
            query = urlencode({**self.query, "cursor": [str(begin + size)]}, doseq=True)
            headers["Link"] = f'<{self.world.endpoint}/api/models?{query}>; rel="next"'
        listed = []
        for repo in page:
            commit = repo.at("main")
            assert commit is not None
            data = repo.to_json(commit)
            if "full" not in self.query:
                data = {key: data[key] for key in data if key not in ("sha", "siblings", "lastModified")}
            if "cardData" not in self.query:
                data.pop("cardData", None)
            listed.append(data)
        return self.json(listed, headers=headers)

    def collection(self, slug: str) -> Reply:
        if slug not in self.world.collections:
            raise Answer(404, "Collection not found")
        return self.json(self.world.collections[slug].to_json())

    def list_webhooks(self) -> Reply:
        self.someone()
        return self.json(self.world.webhooks)

    def add_webhook(self) -> Reply:
        self.someone()
        wish = json.loads(self.body)
        hook = {"id": f"{len(self.world.webhooks):024}", "disabled": False, **wish}
        self.world.webhooks.append(hook)
        return self.json({"webhook": hook})

    def _one(self, name: str) -> str | None:
        return self.query.get(name, [None])[0]  # type: ignore[list-item]

    def _matches(self, repo: Repo) -> bool:
        commit = repo.at("main")
        if commit is None or not self.world.asks:
            return commit is not None
        tags = repo.tags(commit)
        search, author, task = (self._one(name) for name in ("search", "author", "pipeline_tag"))
        return (
            all(tag in tags for tag in self.query.get("filter", []))
            and (author is None or repo.id.split("/")[0] == author)
            and (search is None or search.lower() in repo.id.lower())
            and (task is None or repo.pipeline == task)
        )
