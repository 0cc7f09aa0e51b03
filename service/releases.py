"""What a watch finds on the Hub: models as the listing describes them, before any is looked at closely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from huggingface_hub import HfApi, ModelInfo

from service.hub import ask, hub
from service.listing import describe
from service.watches import Kind, Watch

LISTED = 1000
"""How many models of one listing are looked at."""
COLLECTED = 300
"""How many of a collection: it names its models only, and each has to be asked for."""


@dataclass(frozen=True)
class Release:
    """A model as a listing gives it; what the listing leaves out is None, or empty."""

    model: str
    commit: str | None = None
    created: float | None = None
    downloads: int | None = None
    tags: frozenset[str] = frozenset()
    task: str | None = None
    library: str | None = None
    private: bool = False
    gated: bool = False
    revision: str | None = None

    @property
    def reference(self) -> str:
        """How `resolve` is asked for it."""
        return self.model if self.revision is None else f"{self.model}@{self.revision}"


def releases(watch: Watch, token: str | None = None) -> list[Release]:
    """What the watch's target holds now, newest first where the Hub sorts.

    Raises:
        BadInput: the target is gone; HubUnavailable where it may be back later.
    """
    api = hub(token)
    match watch.kind:
        case Kind.MODEL:
            name, _, revision = watch.target.partition("@")
            return [one_release(name, revision or None, token)]
        case Kind.COLLECTION:
            found = ask(watch.target, lambda: api.get_collection(watch.target))
            models = [item.item_id for item in found.items if item.item_type == "model"]
            return [Release(model) for model in models[:COLLECTED]]
        case _:
            return ask(watch.target, lambda: list(_listed(api, watch)))


def one_release(model: str, revision: str | None = None, token: str | None = None) -> Release:
    """One model as it is now.

    Raises:
        BadInput: as `releases`.
    """
    return _release(describe(hub(token), model, revision), revision)


def _listed(api: HfApi, watch: Watch) -> Iterator[Release]:
    found = api.list_models(
        author=watch.target if watch.kind is Kind.AUTHOR else None,
        search=watch.target if watch.kind is Kind.SEARCH else None,
        pipeline_tag=watch.task,
        filter=[*([watch.library] if watch.library else []), *watch.tags] or None,
        sort="created_at",
        full=True,
        cardData=True,
        limit=LISTED,
    )
    for info in islice(found, LISTED):
        if is_meant(watch, info.id):  # whatever the Hub makes of the question
            yield _release(info)


def is_meant(watch: Watch, model: str) -> bool:
    """Whether the watch of an author, or of a search, looks for a model of this id."""
    words = watch.target.casefold()
    if watch.kind is Kind.AUTHOR:
        return model.partition("/")[0].casefold() == words
    return all(word in model.casefold() for word in words.split())


def _release(info: ModelInfo, revision: str | None = None) -> Release:
    created = info.created_at
    if created is not None and created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return Release(
        model=info.id,
        commit=info.sha,
        created=None if created is None else _seconds(created),
        downloads=info.downloads,
        tags=frozenset(info.tags or ()),
        task=info.pipeline_tag,
        library=info.library_name,
        private=bool(info.private),
        gated=bool(info.gated),
        revision=revision,
    )


def _seconds(at: datetime) -> float:
    return at.timestamp()
