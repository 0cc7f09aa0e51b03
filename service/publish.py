"""Publishing: a verified conversion goes to a folder or to a Hub repo, whole or not at all.

Nothing is published without evidence whose verdict allows it, and there is no way around that. A destination
that Tricksmith did not make is never touched; publishing the same manifest twice changes nothing.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

from service.hub import DEFAULT_ENDPOINT, TIMEOUT_S, endpoint, hub, hub_errors, is_hub_id
from service.manifest import MANIFEST, check_files, digest, parse_manifest, read_manifest
from service.papers import CARD, EVIDENCE, write_papers
from service.source import Source, check_space
from tricks import BadInput, Report, TricksmithError, silent

if TYPE_CHECKING:
    from evals import Evidence

UNVERIFIED = "UNVERIFIED"

_CHUNK = 16 * 1024 * 1024  # bytes between two progress reports


class NotPublishable(TricksmithError):
    """The evidence does not allow publishing."""


def is_folder(to: str) -> bool:
    """Whether a destination is a folder: written as a path (`/`, `.`, `~`) or not as `namespace/name`."""
    return to.startswith(("/", ".", "~")) or to.count("/") != 1 or to.endswith("/")


def check_destination(to: str, token: str | None = None, pr: bool = False) -> str:
    """See early whether a conversion may go to `to`; give it back as it is to be kept (folders absolute).

    Raises:
        BadInput: malformed, no right to write, or it exists and Tricksmith did not make it.
    """
    to = to.strip()
    if not to or any(ord(char) < 32 for char in to):
        raise BadInput("no destination given; write NAMESPACE/NAME or a folder")
    if is_folder(to):
        if pr:
            raise BadInput(f"a pull request goes to a Hub repo, not to the folder {to}; leave out --pr")
        path = Path(to).expanduser().absolute()
        _check_folder(path)
        return str(path)
    if not is_hub_id(to):
        raise BadInput(f"{to!r} is no Hub id; write NAMESPACE/NAME, or ./{to} for a folder")
    _check_namespace(to, token, pr)
    _hub_state(hub(token), to, pr)
    return to


def check_visibility(source: Source, to: str, private: bool) -> None:
    """A source that only its owner may read does not become public by way of its conversion.

    Raises:
        BadInput: a private source, and a public Hub destination.
    """
    if source.private and not private and not is_folder(to):
        raise BadInput(f"{source.model} is private; publish its conversion with --private, or into a folder")


def publish(
    folder: Path,
    to: str,
    *,
    evidence: Evidence,
    source: Source,
    private: bool = False,
    pr: bool = False,
    token: str | None = None,
    report: Report | None = None,
) -> str:
    """Publish the converted `folder` (weights, card, manifest, evidence); returns the address or the folder.

    Only files that the manifest names, the card, the manifest and the evidence leave the folder. `report`
    counts bytes and may raise `Cancelled`: then nothing of the destination was changed for others to see.

    Raises:
        NotPublishable: the evidence is absent or its verdict is `different`, or the card says unverified.
        BadInput: the destination is not ours, the folder is not what was converted, the disk is full.
    """
    verdict = getattr(evidence, "verdict", None)
    if verdict is None or not verdict.publishable:
        said = "it was not compared with its source" if verdict is None else f"the verdict is {verdict.value}"
        raise NotPublishable(f"{source.model} is not published: {said}")
    manifest = read_manifest(folder)
    if manifest is None:
        raise BadInput(f"{folder} has no {MANIFEST} of Tricksmith; convert first")
    check_visibility(source, to, private)
    card = _verified_card(folder)
    check_files(folder, manifest)
    # What is published beside the card is the evidence that let it through, and no other.
    write_papers(folder, card=card, evidence=evidence.to_json())
    names = sorted({*manifest["files"], CARD, MANIFEST, EVIDENCE})
    if is_folder(to):
        return _to_folder(folder, Path(to).expanduser().absolute(), names, manifest, report or silent)
    return _to_hub(folder, to, names, manifest, source, private, pr, token, report or silent)


def _verified_card(folder: Path) -> str:
    path = folder / CARD
    if not path.is_file():
        raise BadInput(f"{folder} has no {CARD}; convert and verify first")
    card = path.read_text("utf-8")
    body = card.split("\n---\n", 1)[-1].lstrip()
    if UNVERIFIED in body.split("\n", 1)[0]:
        raise NotPublishable(f"the card says {UNVERIFIED}; verify first")
    return card


# folders


def _check_folder(path: Path) -> dict[str, Any] | None:
    """The manifest of what is at `path`, None where nothing is; refuses what is not ours."""
    if not path.exists() and not path.is_symlink():
        return None
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is None:
        raise BadInput(f"{path} exists and Tricksmith did not make it; choose another destination")
    return manifest


def _to_folder(folder: Path, path: Path, names: list[str], manifest: dict[str, Any], report: Report) -> str:
    """Copy beside the destination, then rename: at no moment is there a half-written folder of that name."""
    mark = digest(manifest)[:12]
    staging = path.with_name(f".{path.name}.{mark}.part")
    aside = path.with_name(f".{path.name}.old")
    if aside.is_dir() and not path.exists():  # an earlier replacement stopped between its two renames
        aside.rename(path)
    there = _check_folder(path)
    if there is not None and digest(there) == digest(manifest):
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    total = sum((folder / name).stat().st_size for name in names)
    check_space(path.parent, total, f"publishing to {path}")
    try:
        done = 0
        for name in names:
            done = _copy(folder / name, staging / name, done, total, report)
        for sub in {(staging / name).parent for name in names}:
            _sync_folder(sub)
        if there is not None:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        staging.rename(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); use another destination") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return str(path)


def _copy(source: Path, target: Path, done: int, total: int, report: Report) -> int:
    """Copy one file and force it to the disk; returns the bytes done so far."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_CHUNK):
            writer.write(block)
            done += len(block)
            report("bytes", done, total)
        writer.flush()
        os.fsync(writer.fileno())
    return done


def _sync_folder(path: Path) -> None:
    """Force a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# the Hub


def _check_namespace(to: str, token: str | None, pr: bool) -> None:
    """Whether the token may write into the namespace of `to` (for a pull request: write at all)."""
    with hub_errors(to):
        me = hub(token).whoami()
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise BadInput("this Hub token may only read; make one that may write, and set HF_TOKEN to it")
    namespace = to.split("/")[0]
    mine = {me.get("name"), *(org.get("name") for org in me.get("orgs", []))}
    if not pr and namespace not in mine:
        raise BadInput(
            f"this token may not write to {namespace}; use one of: {', '.join(sorted(filter(None, mine)))}"
            f" (for a folder, write ./{to})"
        )


def _hub_state(api: HfApi, to: str, pr: bool) -> tuple[ModelInfo | None, dict[str, Any] | None]:
    """What is at `to` now, and its manifest; refuses a repo with files that is not ours, unless for a PR."""
    try:
        with hub_errors(to):
            info = _info(api, to)
    except _Absent:
        if pr:
            raise BadInput(f"{to} is not on the Hub; a pull request needs a repo, leave out --pr") from None
        return None, None
    manifest = None
    names = {sibling.rfilename for sibling in info.siblings or []}
    if MANIFEST in names:
        manifest = parse_manifest(_download(api, to, MANIFEST, info.sha))
    # A repo with nothing in it is what a publication leaves that was stopped before its commit.
    if manifest is None and not pr and names - {".gitattributes"}:
        raise BadInput(f"{to} exists and Tricksmith did not make it; choose another name, or ask for a PR")
    return info, manifest


class _Absent(Exception):
    """There is no such repo (or none that this token may see)."""


def _info(api: HfApi, to: str) -> ModelInfo:
    try:
        return api.model_info(to, files_metadata=True, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        raise _Absent from error


def _download(api: HfApi, to: str, name: str, commit: str | None) -> bytes:
    with hub_errors(to, commit):
        return Path(api.hf_hub_download(to, name, revision=commit)).read_bytes()


def _to_hub(
    folder: Path,
    to: str,
    names: list[str],
    manifest: dict[str, Any],
    source: Source,
    private: bool,
    pr: bool,
    token: str | None,
    report: Report,
) -> str:
    """One commit into a private repo, which turns public when it is complete; or one pull request."""
    api = hub(token)
    address = f"{endpoint()}/{to}"
    mark = digest(manifest)
    recipe = ", ".join(manifest["recipe"])
    title = f"{recipe} of {source.model}, by Tricksmith ({mark[:12]})"
    info, there = _hub_state(api, to, pr)
    if pr and (known := _open_request(api, to, mark[:12])) is not None:
        return known
    if there is not None and digest(there) == mark:
        return _finish(api, to, info, private or pr, address)
    fresh = info is None or there is None
    with hub_errors(to):
        if info is None:
            api.create_repo(to, private=True, exist_ok=True)
            info = api.model_info(to, timeout=TIMEOUT_S)
    stale = set((there or {}).get("files", {})) - set(names)
    with _operations(folder, names) as additions, hub_errors(to):
        _upload(api, to, additions, pr, report)
        made = api.create_commit(
            to,
            [*additions, *(CommitOperationDelete(name) for name in sorted(stale) if not pr)],
            commit_message=title,
            commit_description=f"Source: {source.model}@{source.commit}\nManifest: {mark}",
            parent_commit=None if pr else info.sha,
            create_pr=pr,
        )
    if pr:
        return made.pr_url or address
    _check_arrived(api, to, made.oid, manifest)
    # A repo that was there before keeps the visibility its owner gave it.
    return _finish(api, to, info, private, address) if fresh else address


def _open_request(api: HfApi, to: str, mark: str) -> str | None:
    """The address of an open pull request that brings this very manifest."""
    with hub_errors(to):
        for found in api.get_repo_discussions(to, discussion_type="pull_request", discussion_status="open"):
            if found.is_pull_request and found.status == "open" and found.title.endswith(f"({mark})"):
                return f"{endpoint()}/{to}/discussions/{found.num}"
    return None


def _finish(api: HfApi, to: str, info: ModelInfo | None, private: bool, address: str) -> str:
    """Let others see the repo, where they should."""
    if not private and (info is None or info.private is not False):
        with hub_errors(to):
            api.update_repo_settings(to, private=False)
    return address


@contextmanager
def _operations(folder: Path, names: list[str]) -> Iterator[list[CommitOperationAdd]]:
    """The files to commit. Xet storage belongs to huggingface.co: any other Hub gets open files, for which
    the client falls back to the LFS protocol that all of them speak.
    """
    if endpoint() == DEFAULT_ENDPOINT:
        yield [CommitOperationAdd(name, folder / name) for name in names]
        return
    streams: list[io.BufferedReader] = []
    try:
        for name in names:
            streams.append((folder / name).open("rb"))
        yield [CommitOperationAdd(name, stream) for name, stream in zip(names, streams, strict=True)]
    finally:
        for stream in streams:
            stream.close()


def _upload(api: HfApi, to: str, additions: list[CommitOperationAdd], pr: bool, report: Report) -> None:
    """Send the large files one by one, so that progress is seen and a stop between two of them is possible.

    They are not visible before the commit; what arrived is not sent again at the next try.
    """
    total = sum(addition.upload_info.size for addition in additions)
    done = 0
    report("bytes", done, total)
    for addition in additions:
        with _plain_errors(addition.path_in_repo):
            api.preupload_lfs_files(to, [addition], create_pr=pr, free_memory=False)
        done += addition.upload_info.size
        report("bytes", done, total)


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """The client wraps what goes wrong in one upload into a RuntimeError: unwrap it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise BadInput(f"{name} could not be uploaded; try again") from error


def _check_arrived(api: HfApi, to: str, commit: str, manifest: dict[str, Any]) -> None:
    """Before anybody sees the repo: every file of the manifest is there, large ones with their digests."""
    with hub_errors(to, commit):
        info = api.model_info(to, revision=commit, files_metadata=True, timeout=TIMEOUT_S)
    found = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name, sha256 in manifest["files"].items():
        lfs = found[name].lfs if name in found else None
        if name not in found or (lfs is not None and lfs.sha256 != sha256):
            raise TricksmithError(
                f"{name} did not arrive at {to} as it was sent; the repo stays private, try again"
            )
