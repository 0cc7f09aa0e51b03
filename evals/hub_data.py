"""Data sets of the Hub: their size held against the disk before they are fetched, and how far that is.

`datasets` does the loading, through the cache that it and huggingface_hub share; failures are said in words.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import get_session, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import tqdm

from evals.models import first_line
from tricks import BadInput, Report, silent

# Arguments of `load_dataset` that say how it goes about it, not what is loaded.
_MANNER = frozenset(
    "split streaming keep_in_memory num_proc save_infos verification_mode download_mode".split()
)
PREPARED = (
    3  # bytes on the disk for each byte fetched, where the data set does not say: parquet is compressed
)
KNOCK_S = 10.0  # seconds in which the Hub has to answer at all
_NO_NETWORK = (OfflineModeIsEnabled, httpx2.TransportError, ConnectionError, TimeoutError)
_SIGNS_OF_A_KEY = ("gated dataset", "API key", "API_KEY", "api_key", "authenticat")


class HubAway(BadInput):
    """The Hub does not answer, or not usefully: the same request may succeed later."""


@contextmanager
def measured(report: Report = silent, most: int | None = None) -> Iterator[None]:
    """Within the block, `datasets.load_dataset` fetches from the Hub with a limit and with progress.

    Args:
        report: told of bytes, of all data sets together; it may raise to end the fetching.
        most: bytes of disk that a data set may take; by default what is free.
    """
    import datasets  # takes a second to import, and most comparisons need none

    usual, offline = datasets.load_dataset, datasets.config.HF_HUB_OFFLINE
    fetched = _Fetched(report)

    def load(path: str, name: str | None = None, **how: Any) -> Any:
        fetched.fetch(path, name, how, most)
        return usual(path, name, **how)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset, datasets.config.HF_HUB_OFFLINE = usual, offline


class _Fetched:
    """Counts the bytes of all data sets that were fetched."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = self._total = 0
        self._knocked = False

    def fetch(self, path: str, name: str | None, how: Mapping[str, Any], most: int | None) -> None:
        """Have the data set's files in the Hub's cache; nothing where they are not the Hub's, or prepared."""
        import datasets

        if datasets.config.HF_HUB_OFFLINE or how.get("streaming"):
            return
        if not self._knocked and not _is_local(path):
            # The client would try for minutes; a Hub that is away leaves what is prepared already.
            self._knocked = True
            datasets.config.HF_HUB_OFFLINE = not _answers(datasets.config.HF_ENDPOINT)
            if datasets.config.HF_HUB_OFFLINE:
                return
        what = {key: value for key, value in how.items() if key not in _MANNER}
        builder = datasets.load_dataset_builder(path, name, **what)
        if Path(builder.cache_dir).is_dir():
            return
        sizes = _sizes(builder)
        size = sum(sizes.values())
        prepared = int(builder.info.dataset_size or PREPARED * size)
        _check_room(path, size + prepared, Path(builder.cache_dir), most)
        self._total += size
        for (repo, revision, file), bytes_ in sizes.items():
            hf_hub_download(
                repo,
                file,
                repo_type="dataset",
                revision=revision,
                endpoint=datasets.config.HF_ENDPOINT,
                tqdm_class=_counter(lambda n, most=bytes_: self._tell(min(n, most))),  # type: ignore[misc]
            )
            self._done += bytes_
            self._tell(0)

    def _tell(self, more: int) -> None:
        self._report("bytes", self._done + more, self._total)


def _is_local(path: str) -> bool:
    """Whether `datasets` reads it without the Hub: one of its own formats, or a path."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return path in _PACKAGED_DATASETS_MODULES or Path(path).exists()


def _answers(endpoint: str) -> bool:
    """Whether anybody is there, whatever is said."""
    try:
        get_session().head(endpoint, timeout=KNOCK_S)
    except httpx2.TransportError:
        return False
    return True


def _sizes(builder: Any) -> dict[tuple[str, str, str], int]:
    """(repo, revision, file) -> bytes, of all files of the Hub that the data set is made from."""
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    sizes = {}
    for split in (builder.config.data_files or {}).values():
        for url in split:
            if url.startswith("hf://datasets/"):
                at: Any = files.resolve_path(url)
                sizes[at.repo_id, at.revision, at.path_in_repo] = int(files.info(url)["size"])
    return sizes


def _check_room(name: str, needed: int, folder: Path, most: int | None) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    free = free if most is None else min(free, most)
    if needed > free:
        raise BadInput(
            f"the data set {name} needs {needed / 1e9:.2f} GB of disk, and {max(0, free) / 1e9:.2f} GB are "
            "free here; free some space, or choose smaller data"
        )


def _counter(count: Callable[[int], None]) -> type[tqdm]:
    """The bar that huggingface_hub is given: it shows nothing, and tells each file's bytes so far."""

    class Counter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.so_far = int(kwargs.get("initial") or 0)
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.so_far += int(n or 0)
            count(self.so_far)

    return Counter


def out_of_reach(error: BaseException, what: str) -> BadInput:
    """In words, why `what` ("the text 'x'", "the task y") cannot be loaded: other people's data and code."""
    chain = list(_chain(error))
    said = f"{what} cannot be run" if what.startswith("the task") else f"{what} cannot be read"
    words = " ".join(f"{type(link).__name__} {link}" for link in chain)
    if (full := next((link for link in chain if isinstance(link, BadInput)), None)) is not None:
        return type(full)(str(full))  # another one: it will be raised from this very chain
    statuses = [link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)]
    if (
        any(isinstance(link, GatedRepoError) for link in chain)
        or {401, 403} & set(statuses)
        or any(sign in words for sign in _SIGNS_OF_A_KEY)
    ):
        return BadInput(
            f"{said}: its data need a key or an accepted licence ({first_line(error)}); "
            "choose open data, or give them as a file"
        )
    if "scripts are no longer supported" in words:
        return BadInput(
            f"{said}: its data come as code, which is not run ({first_line(error)}); "
            "choose data in files, or give them as a file"
        )
    if "doesn't exist on the Hub" in words:
        return BadInput(f"{said}: its data are not on the Hub ({first_line(error)}); check the name")
    failing = any(status == 429 or status >= 500 for status in statuses)
    missing = any(isinstance(link, LocalEntryNotFoundError) for link in chain)
    if failing or missing or any(isinstance(link, _NO_NETWORK) for link in chain):
        return HubAway(
            f"{said}: its data are out of reach, here or over the network ({first_line(error)}); "
            "try again later, or give a file"
        )
    return BadInput(f"{said}: {first_line(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__
