"""The pull request that brings a conversion to a repo: found again by its mark, and never opened twice.

Between opening a request and noting that it is open a worker may die. So the request says in its title which
conversion it brings, and is looked for before it is opened: among the repo's discussions, or, on a Hub that
lists none, in the heads of its requests. Where neither can be asked, a note on the disk, laid down before the
request is sent, keeps a second attempt from guessing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from service.hub import HubUnavailable, HubUnusable, ask, endpoint, hub_errors
from service.manifest import digest
from service.place import Place, place_at
from tricks import BadInput

_LISTED = 1000  # discussions; also the end for a Hub whose pages have none
_HEADS = 50  # newest requests whose files are looked at


class NotTold(BadInput):
    """The Hub does not list a repo's requests."""


@dataclass(frozen=True)
class Found:
    """A request for this conversion: its number, and `open`, `draft`, `merged` or `closed`."""

    number: int
    status: str = "open"


def mark_of(manifest: dict[str, Any]) -> str:
    """Equal (12 hex digits) for one recipe on one source, whichever machine and versions carried it out."""
    what = [manifest["source"]["id"], manifest["source"]["files"], manifest["recipe"]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def find_request(api: HfApi, to: str, manifest: dict[str, Any]) -> Found | None:
    """The request to `to` that brings this conversion; the newest where there are several.

    Raises:
        NotTold: this Hub does not say.
        HubUnavailable: nobody knows now.
    """
    try:
        return ask(to, partial(_by_title, api, to, mark_of(manifest)))
    except HubUnavailable:
        raise
    except BadInput:
        return _by_head(api, to, manifest)


def _by_title(api: HfApi, to: str, mark: str) -> Found | None:
    for request in islice(api.get_repo_discussions(to, discussion_type="pull_request"), _LISTED):
        if request.is_pull_request and request.title.endswith(f"({mark})"):
            return Found(request.num, request.status)
    return None


def _by_head(api: HfApi, to: str, manifest: dict[str, Any]) -> Found | None:
    try:
        refs = ask(to, partial(api.list_repo_refs, to, include_pull_requests=True))
    except HubUnavailable:
        raise
    except BadInput as error:
        raise NotTold(f"{to}: this Hub does not list pull requests") from error
    if refs.pull_requests is None:
        raise NotTold(f"{to}: this Hub does not list pull requests")
    matches = (re.search(r"\d+$", head.ref) for head in refs.pull_requests)
    numbers = sorted((int(match[0]) for match in matches if match), reverse=True)
    for number in numbers[:_HEADS]:
        head = head_of(api, to, number)
        if head is not None and head.mark == digest(manifest):
            return Found(number)
    return None


def head_of(api: HfApi, to: str, number: int) -> Place | None:
    """What a request brings; None where its head is gone, or not shown.

    Raises:
        HubUnavailable: nobody knows now.
    """
    try:
        return place_at(api, to, f"refs/pr/{number}")
    except HubUnavailable:
        raise
    except BadInput:
        return None


class Note:
    """What is written down, beside the converted folder, before a request is sent."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._path = folder.parent / f".offer-{mark}"

    @contextmanager
    def laid_down(self, to: str) -> Iterator[None]:
        """Within the block a request is sent; the note stays unless the Hub surely took none."""
        self._path.touch()
        try:
            with hub_errors(to):
                yield
        except HubUnusable:
            raise
        except HubUnavailable as error:
            if error.limited:  # it asked to wait, and did nothing
                self._path.unlink()
            raise
        except BadInput:
            self._path.unlink()
            raise

    def check(self, to: str) -> None:
        """Do not send again what may have arrived.

        Raises:
            BadInput: a request may be open.
        """
        if self._path.exists():
            raise BadInput(
                f"whether the pull request to {to} was opened is not known, and this Hub does not list them;"
                f" look at {endpoint()}/{to}/discussions, and submit again if it is not there"
            )
