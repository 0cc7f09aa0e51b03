"""What stands at a Hub id: a repo, and whether Tricksmith made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelInfo

from service.eval_results import FOLDER
from service.hub import HubMissing, ask
from service.listing import describe, files_in
from service.manifest import MANIFEST, digest, parse_manifest
from service.papers import PICTURE
from tricks import BadInput

_PAPERS = (f"{FOLDER}/", PICTURE)


@dataclass(frozen=True)
class Place:
    """What stands at a destination: a repo (or None), our manifest in it (None: not ours), its files."""

    info: ModelInfo | None = None
    manifest: dict[str, Any] | None = None
    names: frozenset[str] = frozenset()

    @property
    def files(self) -> set[str]:
        """What of the repo is of our making: what the manifest names, scores on benchmarks, a picture."""
        if self.info is None or self.manifest is None:
            return set()
        ours = self.manifest["files"]
        return {name for name in self.names if name in ours or name.startswith(_PAPERS)}

    @property
    def mark(self) -> str | None:
        """The digest of the manifest."""
        return None if self.manifest is None else digest(self.manifest)


def look_at(api: HfApi, to: str, pr: bool) -> Place:
    """What is at `to` now.

    Raises:
        BadInput: a repo that is not ours (unless for a pull request), or none for a pull request.
    """
    try:
        place = place_at(api, to)
    except HubMissing:
        if pr:
            raise BadInput(f"{to} is not on the Hub; a pull request needs a repo, leave out --pr") from None
        return Place()
    if place.manifest is None and not pr and not _is_unfinished(place):
        raise BadInput(f"{to} exists and Tricksmith did not make it; choose another name, or ask for a PR")
    return place


def place_at(api: HfApi, to: str, revision: str | None = None) -> Place:
    """A repo and our manifest in it.

    Raises:
        HubMissing: there is none.
    """
    info = describe(api, to, revision)
    names = frozenset(files_in(api, info))
    if MANIFEST not in names:
        return Place(info, names=names)
    with TemporaryDirectory(prefix="tricksmith-") as scratch:
        path = ask(
            to,
            lambda: api.hf_hub_download(to, MANIFEST, revision=info.sha, local_dir=scratch),
            info.sha,
        )
        return Place(info, parse_manifest(Path(path).read_bytes()), names)


def _is_unfinished(place: Place) -> bool:
    """Whether a repo is what a publication leaves that was stopped before its commit: hidden and empty."""
    hidden = place.info is not None and place.info.private is not False
    return hidden and not place.names - {".gitattributes"}
