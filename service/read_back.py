"""Reading a publication back: what others will get, held to what was measured.

The evidence is of certain bytes. A download whose every file has the digest of the file that was measured is
the model that was measured: to measure it again would be to compute the same figures from the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, hf_hub_download

from service.fetch import byte_counter
from service.hub import ask, endpoint
from service.listing import describe, files_in
from service.upload import Progress
from tricks import TricksmithError


def read_back(
    api: HfApi, to: str, commit: str, digests: Mapping[str, str], disk: Path, progress: Progress
) -> None:
    """Download every file of the `commit` of `to`, one at a time onto `disk`, and compare its SHA-256 (hex).

    Raises:
        TricksmithError: a file is not there, or is not what was sent.
    """
    absent = set(digests) - set(files_in(api, describe(api, to, commit)))
    if absent:
        raise _not_as_sent(min(absent), to)
    with TemporaryDirectory(dir=disk, prefix=".read-back-") as scratch:
        for name, sha256 in digests.items():
            progress.begin()
            path = ask(to, partial(_download, api, to, name, commit, scratch, progress), commit)
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != sha256:
                raise _not_as_sent(name, to)
            size = path.stat().st_size
            path.unlink()
            progress.finished(size)


def _download(api: HfApi, to: str, name: str, commit: str, scratch: str, progress: Progress) -> Path:
    path = hf_hub_download(
        to,
        name,
        revision=commit,
        local_dir=scratch,
        token=api.token,
        endpoint=endpoint(),
        tqdm_class=byte_counter(progress.at),
    )
    return Path(path)


def _not_as_sent(name: str, to: str) -> TricksmithError:
    return TricksmithError(
        f"{name} did not arrive at {to} as it was sent; the repo stays as others know it, try again"
    )
