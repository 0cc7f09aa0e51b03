"""Whether somebody converted a model already, as the Hub's own `base_model` links tell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from service.hub import HubMissing, ask, hub
from service.place import place_at
from service.source import Source
from tricks import parse_trick

_LISTED = 100


def converted_by(
    source: Source, tricks: Sequence[str], *, ours: str | None = None, token: str | None = None
) -> str | None:
    """The repo that holds `source` converted with `tricks` already; None where none is known.

    `ours` is the destination: its manifest tells exactly. Others are told by their `base_model` and tags.

    Raises:
        HubUnavailable: nobody knows now.
    """
    if source.folder is not None:
        return None
    if ours is not None and _is_conversion(source, tricks, ours, token):
        return ours
    api = hub(token)
    base = f"base_model:{source.model}"
    found = ask(source.model, lambda: list(islice(api.list_models(filter=base, limit=_LISTED), _LISTED)))
    wanted = {base.casefold(), *(parse_trick(text).name for text in tricks)}
    for info in found:
        fits = wanted <= {tag.casefold() for tag in info.tags or ()}
        if info.id != ours and fits and _is_of(source, info.id, tricks, token):
            return info.id
    return None


def _is_of(source: Source, repo: str, tricks: Sequence[str], token: str | None) -> bool:
    """Ours are held to their manifest (an older commit does not count), others taken at their word."""
    try:
        manifest = place_at(hub(token), repo).manifest
    except HubMissing:
        return False
    return manifest is None or _says(manifest, source, tricks)


def _is_conversion(source: Source, tricks: Sequence[str], repo: str, token: str | None) -> bool:
    try:
        manifest = place_at(hub(token), repo).manifest
    except HubMissing:
        return False
    return manifest is not None and _says(manifest, source, tricks)


def _says(manifest: dict[str, Any], source: Source, tricks: Sequence[str]) -> bool:
    said = manifest["source"]
    same = said.get("id") == source.model and said.get("commit") == source.commit
    return bool(same and manifest["recipe"] == list(tricks))
