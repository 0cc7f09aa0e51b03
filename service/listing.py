"""The files of a repo at one commit, from whichever of the Hub's listings has them."""

from __future__ import annotations

from functools import partial

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.hf_api import RepoFile, RepoSibling

from service.hub import ask


def files_in(api: HfApi, info: ModelInfo) -> dict[str, RepoSibling]:
    """Name -> what is said of the file. A description without a list of files is not an empty repo.

    Raises:
        BadInput: the Hub does not say.
    """
    if info.siblings is not None:
        return {sibling.rfilename: sibling for sibling in info.siblings}
    tree = partial(api.list_repo_tree, info.id, recursive=True, revision=info.sha)
    return {
        file.path: RepoSibling(file.path, size=file.size, blob_id=file.blob_id, lfs=file.lfs)
        for file in ask(info.id, lambda: list(tree()), info.sha)
        if isinstance(file, RepoFile)
    }
