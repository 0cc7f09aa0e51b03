"""A watch: a rule that makes jobs from new releases. `watching` follows it, `deciding` decides."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from service.hub import is_hub_id
from service.naming import destination
from service.publish import is_folder
from tricks import BadInput, parse_trick

SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_PATTERN = re.compile(r"[A-Za-z0-9._*?/\[\]!-]{1,200}", re.ASCII)


class Kind(StrEnum):
    """What is watched."""

    AUTHOR = "author"
    MODEL = "model"
    COLLECTION = "collection"
    SEARCH = "search"


@dataclass(frozen=True)
class Watch:
    """What is watched, what passes, and what is done with it. Times are unix seconds, ages are days.

    `target` is a user or organisation, a Hub id with an optional `@revision`, a collection's slug, or words
    to search for. A release passes when each filter lets it: `allow` (one of the patterns must fit its id;
    none: every id), `deny` (none may), `task`, `library`, `tags` (all), `min_downloads`, `min_age` (so that a
    release may settle). Of an author and a search, what was there before is left; `max_age` says of how far
    before the watch was added it is taken all the same.
    `revisions`: convert again when what a conversion reads of a source changes.
    """

    id: str
    kind: Kind
    target: str
    tricks: tuple[str, ...]
    to: str
    created: float
    private: bool = False
    revisions: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    task: str | None = None
    library: str | None = None
    tags: tuple[str, ...] = ()
    min_downloads: int = 0
    min_age: float = 0.0
    max_age: float = 0.0
    per_poll: int = 5
    per_day: int = 20
    every: float = 900.0
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """The watch in a few words."""
        return f"{self.kind.value} {self.target}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Watch:
        """Read what `to_json` wrote; fields of later schemas are passed over."""
        known = {field.name for field in fields(Watch)}
        values = _frozen({name: value for name, value in data.items() if name in known})
        return Watch(**{**values, "kind": Kind(values["kind"])})


def new_watch(kind: Kind, target: str, tricks: Sequence[str], to: str, **filters: Any) -> Watch:
    """A watch of the rule's words, each checked.

    Raises:
        BadInput: a word that cannot be meant; says which and what to write.
    """
    target = target.strip()
    _check_target(kind, target)
    recipe = tuple(str(parse_trick(text)) for text in tricks)
    if not recipe:
        raise BadInput("a watch needs a trick; give --trick")
    values = {"revisions": kind is Kind.MODEL, **_frozen(filters)}
    watch = Watch(
        id=secrets.token_hex(4),
        kind=kind,
        target=target,
        tricks=recipe,
        to=_placed(to.strip()),
        created=time.time(),
        **values,
    )
    _check_numbers(watch)
    for pattern in (*watch.allow, *watch.deny):
        if not _PATTERN.fullmatch(pattern):
            raise BadInput(f"{pattern!r} is no pattern of Hub ids; write such as org/* or */*-Instruct")
    _check_destination(watch)
    return watch


def _placed(to: str) -> str:
    """A folder as it stands on this machine: who follows the watch may stand in another one."""
    return str(Path(to).expanduser().absolute()) if to.startswith((".", "~")) else to


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _check_target(kind: Kind, target: str) -> None:
    name, at, revision = target.partition("@")
    if kind is Kind.AUTHOR and not _NAME.fullmatch(target):
        raise BadInput(f"{target!r} is no user or organisation of the Hub; write its name alone")
    if kind is Kind.MODEL and not (is_hub_id(name) and "/" in name and (bool(revision) or not at)):
        raise BadInput(f"{target!r} is no Hub id; write org/name, or org/name@branch")
    if kind is Kind.COLLECTION and not _SLUG.fullmatch(target):
        raise BadInput(f"{target!r} is no collection; write its slug, owner/title-0123456789abcdef")
    if kind is Kind.SEARCH and (not target or not target.isprintable() or len(target) > 200):
        raise BadInput("a search needs up to 200 characters to look for")


def _check_numbers(watch: Watch) -> None:
    if watch.per_poll < 1 or watch.per_day < 1:
        raise BadInput("a watch queues at least one job per poll and per day; give numbers from 1 on")
    if watch.every < 60:
        raise BadInput("a watch is looked at once a minute at most; give --every 1 or more")
    if watch.min_downloads < 0 or watch.min_age < 0 or watch.max_age < 0:
        raise BadInput("downloads and ages are not below 0; give numbers from 0 on")


def _check_destination(watch: Watch) -> None:
    """One destination for many models would be overwritten by each of them."""
    one = destination(watch.to, "some-owner/Some-Model", watch.tricks)
    other = destination(watch.to, "some-owner/Other-Model", watch.tricks)
    if not is_folder(one) and not is_hub_id(one):
        raise BadInput(f"{watch.to!r} is no destination; write NAMESPACE, or a folder such as ./converted")
    if watch.kind is not Kind.MODEL and one == other:
        raise BadInput(f"{watch.to} is one place for many models; write a NAMESPACE, or {{name}} in it")
