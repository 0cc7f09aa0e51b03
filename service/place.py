"""What stands at a Hub id: a repo, and whether Tricksmith made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelInfo

from service.eval_results import FOLDER
from service.hub import TIMEOUT_S, HubMissing, ask
from service.manifest import MANIFEST, digest, parse_manifest
from tricks import BadInput


@dataclass(frozen=True)
class Place:
    """What stands at a destination: the repo (None: nothing) and our manifest in it (None: not ours)."""

    info: ModelInfo | None = None
    manifest: dict[str, Any] | None = None

    @property
    def files(self) -> set[str]:
        """What of the repo is of our making: what the manifest names, and scores on benchmarks."""
        if self.info is None or self.manifest is None:
            return set()
        there = {sibling.rfilename for sibling in self.info.siblings or []}
        return {name for name in there if name in self.manifest["files"] or name.startswith(f"{FOLDER}/")}

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
    if place.manifest is None and not pr and not _is_unfinished(place.info):
        raise BadInput(f"{to} exists and Tricksmith did not make it; choose another name, or ask for a PR")
    return place


def place_at(api: HfApi, to: str, revision: str | None = None) -> Place:
    """A repo and our manifest in it.

    Raises:
        HubMissing: there is none.
    """
    info = ask(
        to,
        lambda: api.model_info(to, revision=revision, files_metadata=True, timeout=TIMEOUT_S),
        revision,
    )
    names = {sibling.rfilename for sibling in info.siblings or []}
    if MANIFEST not in names:
        return Place(info)
    with TemporaryDirectory(prefix="tricksmith-") as scratch:
        path = ask(
            to,
            lambda: api.hf_hub_download(to, MANIFEST, revision=info.sha, local_dir=scratch),
            info.sha,
        )
        return Place(info, parse_manifest(Path(path).read_bytes()))


def _is_unfinished(info: ModelInfo | None) -> bool:
    """Whether a repo is what a publication leaves that was stopped before its commit: hidden and empty."""
    if info is None or info.private is False:
        return False
    return not {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
