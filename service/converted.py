"""Whether somebody converted a model already, as the Hub's own `base_model` links tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelInfo

from service.hub import HubMissing, HubUnavailable, ask, hub
from service.naming import converted_name
from service.place import place_at
from service.source import Source
from tricks import BadInput, parse_trick

_LISTED = 100


def converted_by(
    source: Source, tricks: Sequence[str], *, ours: str | None = None, token: str | bool | None = None
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
    try:
        found = ask(source.model, lambda: list(api.list_models(filter=base, limit=_LISTED, cardData=True)))
    except HubUnavailable:
        raise
    except BadInput:  # a Hub that cannot search
        return None
    wanted = {base.casefold(), *(parse_trick(text).name for text in tricks)}
    name = converted_name(source.model, tricks)
    for info in found:
        if info.id == ours:
            continue
        if wanted <= _tags(info) and _is_of(source, info.id, tricks, token):
            return info.id
        untold = info.tags is None and info.card_data is None
        if untold and info.id.endswith(f"/{name}") and _is_conversion(source, tricks, info.id, token):
            return info.id
    return None


def _tags(info: ModelInfo) -> set[str]:
    """A repo's tags, small; `base_model` also from its card, where the Hub derives no tag from it."""
    bases = info.card_data.base_model if info.card_data is not None else None
    named = [bases] if isinstance(bases, str) else bases or []
    return {tag.casefold() for tag in (*(info.tags or ()), *(f"base_model:{base}" for base in named))}


def _is_of(source: Source, repo: str, tricks: Sequence[str], token: str | bool | None) -> bool:
    """Ours are held to their manifest (an older commit does not count), others taken at their word."""
    try:
        manifest = place_at(hub(token), repo).manifest
    except HubMissing:
        return False
    return manifest is None or _says(manifest, source, tricks)


def _is_conversion(source: Source, tricks: Sequence[str], repo: str, token: str | bool | None) -> bool:
    try:
        manifest = place_at(hub(token), repo).manifest
    except HubMissing:
        return False
    return manifest is not None and _says(manifest, source, tricks)


def _says(manifest: dict[str, Any], source: Source, tricks: Sequence[str]) -> bool:
    said = manifest["source"]
    same = said.get("id") == source.model and said.get("commit") == source.commit
    return bool(same and manifest["recipe"] == list(tricks))
