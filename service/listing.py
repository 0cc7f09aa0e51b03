"""The files of a repo at one commit, from whichever of the Hub's listings has them.

What a listing must say of a file is its name alone; size and digests stand in one Hub's description of the
repo, in another's tree, in a third's answer to a question about the file. `files_in` takes what is there.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, ModelInfo, RepoFile

from service.hub import TIMEOUT_S, HubUnusable, ask
from tricks import BadInput

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


_SHA256, _BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Listed:
    """What is said of a file: bytes, SHA-256 (hex) of a large one, Git's blob id (hex) of a small one."""

    size: int | None = None
    sha256: str | None = None
    blob: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether that is enough to know the file's bytes when they come."""
        return self.size is not None and (self.sha256 or self.blob) is not None


def describe(api: HfApi, repo: str, revision: str | None = None, *, details: bool = False) -> ModelInfo:
    """The Hub's description of `repo`, with its files' `details` and the scanners' word where asked for.

    Raises:
        BadInput: as `ask`.
    """
    about = partial(api.model_info, repo, revision=revision, timeout=TIMEOUT_S)
    if details:
        try:
            return ask(repo, partial(about, files_metadata=True, securityStatus=True), revision)
        except HubUnusable:  # the client reads details in one form only; without them it may read the rest
            pass
    return ask(repo, about, revision)


def files_in(api: HfApi, info: ModelInfo, *, details: bool = False) -> dict[str, Listed]:
    """Name -> what is said of the file. A description without a list of files is not an empty repo.

    Raises:
        BadInput: the Hub does not say.
    """
    if info.siblings is None:
        return _tree(api, info)
    files = {one.rfilename: _listed(one) for one in info.siblings}
    if details and not all(file.is_told for file in files.values()):
        with suppress(BadInput):  # a Hub without such a listing has to be asked for each file
            files |= {name: file for name, file in _tree(api, info).items() if name in files}
    return files


def _listed(file: RepoFile | RepoSibling) -> Listed:
    if file.lfs is not None:
        return known(file.size, str(file.lfs.sha256).removeprefix("sha256:"))
    return known(file.size, file.blob_id)


def known(size: int | None, tag: str | None) -> Listed:
    """What a file's digest says, told by its form; an id of another form says nothing of the bytes."""
    if tag is not None and _SHA256.fullmatch(tag):
        return Listed(size, sha256=tag)
    return Listed(size, blob=tag if tag is not None and _BLOB.fullmatch(tag) else None)


def _tree(api: HfApi, info: ModelInfo) -> dict[str, Listed]:
    listing = partial(api.list_repo_tree, info.id, recursive=True, revision=info.sha)
    return {
        file.path: _listed(file)
        for file in ask(info.id, lambda: list(listing()), info.sha)
        if isinstance(file, RepoFile)
    }
