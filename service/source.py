"""A source: one model at one commit of the Hub, or a local folder; its headers and its files.

How it works: `resolve` asks the Hub once, pins the commit and lists the files a conversion needs, so that
everything later speaks of the same bytes. `read_headers` reads `config.json`, the index and the first bytes
of each weight file: a plan costs kilobytes. `fetch` moves only the listed files, and checks what the Hub
gives a digest for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelInfo, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff
from huggingface_hub.utils.tqdm import tqdm

from service.hub import TIMEOUT_S, HubUnavailable, endpoint, hub, hub_errors, is_hub_id
from tricks import (
    BadInput,
    Checkpoint,
    Report,
    checkpoint_from_headers,
    companions,
    files_of,
    read_checkpoint,
    silent,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|pkl|ckpt|h5|msgpack|onnx|gguf)", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)

_HEADER_GUESS = 100_000  # bytes; the header of nearly every safetensors file on the Hub is smaller
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
_JSON_LIMIT = 100_000_000  # bytes of config.json or the index
_SPACE_MARGIN = 64 * 1024 * 1024  # bytes that a fetch leaves free

_CARD_KEYS = ("license", "license_name", "license_link", "language", "tags", "library_name", "pipeline_tag")


@dataclass(frozen=True)
class SourceFile:
    """One file that a conversion needs: bytes, and the SHA-256 in hex where the Hub states it."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A model at one commit.

    `model` is the Hub id, or the folder's name; exactly one of `commit` and `folder` is set. `card` holds the
    source card's metadata as its author wrote it (untrusted); scores are left out on purpose.
    """

    model: str
    revision: str | None = None
    commit: str | None = None
    folder: str | None = None
    licence: str | None = None
    gated: bool = False
    private: bool = False
    files: tuple[SourceFile, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """What a conversion has to read, weights and all."""
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weight files' names."""
        return tuple(file.name for file in self.files if file.name.endswith(".safetensors"))

    @property
    def reference(self) -> str:
        """How a command names exactly this source: `id@commit`, or the folder."""
        return self.folder if self.folder is not None else f"{self.model}@{self.commit}"

    @property
    def key(self) -> str:
        """Equal for equal sources: id and commit, or the folder and its files' sizes, for deduplication."""
        if self.folder is None:
            return f"{self.model}@{self.commit}"
        listing = json.dumps([[file.name, file.size, file.sha256] for file in self.files])
        return f"{self.folder}@{hashlib.sha256(listing.encode()).hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return {**dataclasses.asdict(self), "size_bytes": self.size_bytes}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Source:
        """Read what `to_json` wrote."""
        fields = {key: value for key, value in data.items() if key != "size_bytes"}
        return Source(**{**fields, "files": tuple(SourceFile(**file) for file in data["files"])})


def resolve(model: str, token: str | None = None) -> Source:
    """Find `model`, a folder or a Hub id with an optional `@revision`, and pin it to one commit.

    Raises:
        BadInput: malformed, missing, gated without access, disabled, unsafe, or without safetensors.
    """
    text = model.strip()
    if not text or any(ord(char) < 32 for char in text):
        raise BadInput("no model given; write a folder or a Hub id such as org/name")
    path = Path(text).expanduser()
    if path.is_dir():
        return _resolve_folder(path)
    if path.is_file():
        raise BadInput(f"{text} is a file; give the folder that holds it and its config.json")
    name, at, revision = text.partition("@")
    if text.startswith((".", "/", "~")) or text.endswith("/") or name.count("/") > 1:
        raise BadInput(f"{text} is not a folder here; check the path, or give a Hub id such as org/name")
    if not is_hub_id(name):
        raise BadInput(f"{name!r} is neither a folder nor a Hub id; a Hub id is written org/name")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise BadInput(f"{revision!r} is no revision; write {name}@BRANCH, @TAG or @COMMIT")
    return _resolve_hub(name, revision or None, token)


def read_headers(source: Source, token: str | None = None) -> Checkpoint:
    """Read the config and every weight file's header; of a Hub model, no weight is downloaded.

    Raises:
        BadInput: a file is missing, truncated or not what its name says.
    """
    if source.folder is not None:
        return read_checkpoint(Path(source.folder))
    sizes = {file.name: file.size for file in source.files}
    config = _read_json(source, "config.json", token)
    index = _read_json(source, INDEX, token) if SINGLE not in sizes else None
    with ThreadPoolExecutor(max_workers=8) as pool:
        headers = dict(
            zip(
                source.weights,
                pool.map(lambda name: _read_header(source, name, sizes[name], token), source.weights),
                strict=True,
            )
        )
    return checkpoint_from_headers(config, headers, index, source.model)


def fetch(source: Source, folder: Path, token: str | None = None, report: Report = silent) -> Path:
    """Have the source's files on disk: download what is missing into `folder`, or name the local folder.

    Files that are there already are not fetched again, so a broken fetch goes on where it was.

    Raises:
        BadInput: the disk is too small, access is lost, or a file arrives with other bytes than announced.
        Cancelled: by way of `report`, which counts bytes.
    """
    if source.folder is not None:
        return Path(source.folder)
    missing = [file for file in source.files if not _is_there(folder, file)]
    check_space(folder, sum(file.size for file in missing), f"fetching {source.model}")
    done = source.size_bytes - sum(file.size for file in missing)
    report("bytes", done, source.size_bytes)
    for file in missing:
        start = done

        def count(amount: int, start: int = start, file: SourceFile = file) -> None:
            report("bytes", start + min(amount, file.size), source.size_bytes)

        with hub_errors(source.model, source.commit):
            hf_hub_download(
                source.model,
                file.name,
                revision=source.commit,
                local_dir=folder,
                token=token,
                endpoint=endpoint(),
                tqdm_class=_counter(count),
            )
        _check_fetched(folder / file.name, file)
        done += file.size
        report("bytes", done, source.size_bytes)
    return folder


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse work whose `needed` bytes do not fit on the disk of `folder` (which need not exist yet)."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > 0 and needed + _SPACE_MARGIN > free:
        raise BadInput(
            f"{what} needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free;"
            " free some space or use another disk"
        )


def needed_files(names: Iterable[str], index: dict[str, Any] | None) -> list[str]:
    """Which of a model's files a conversion needs, sorted: weights by the index (or the single file), the
    index, configuration, tokenizer, templates and licence texts.
    """
    everything = set(names)
    if SINGLE in everything:  # as transformers chooses where a repo holds both layouts
        weights = {SINGLE}
    else:
        named = (index or {}).get("weight_map", {})
        values = named.values() if isinstance(named, dict) else ()
        weights = {INDEX} | {
            name for name in values if isinstance(name, str) and name.endswith(".safetensors")
        }
    return sorted((weights & everything) | set(companions(everything)))


def _resolve_folder(path: Path) -> Source:
    folder = path.resolve()
    if not (folder / "config.json").is_file():
        raise BadInput(f"{path} has no config.json; give the folder of a transformers model")
    names = files_of(folder)
    _check_weights(str(path), names)
    index = None
    if SINGLE not in names:
        index = _parse_json((folder / INDEX).read_bytes(), f"{INDEX} of {path}")
    files = tuple(SourceFile(name, (folder / name).stat().st_size) for name in needed_files(names, index))
    card = _card_metadata(_front_matter(folder / "README.md"))
    return Source(
        model=folder.name,
        folder=str(folder),
        licence=_licence(card),
        files=files,
        card=card,
    )


def _resolve_hub(model: str, revision: str | None, token: str | None) -> Source:
    with hub_errors(model, revision):
        info = hub(token).model_info(
            model, revision=revision, files_metadata=True, securityStatus=True, timeout=TIMEOUT_S
        )
    if info.disabled:
        raise BadInput(f"{model} is disabled on the Hub; choose another model")
    if info.sha is None:
        raise BadInput(f"{model} has no commit yet; choose a model that holds files")
    # A renamed repo answers under its new name: from here on, that is its id.
    source = Source(
        model=info.id,
        revision=revision,
        commit=info.sha,
        gated=bool(info.gated),
        private=bool(info.private),
        card=_card_metadata(info.card_data.to_dict() if info.card_data is not None else {}),
    )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if "config.json" not in siblings:
        raise BadInput(f"{model} has no config.json; give a transformers model")
    _check_weights(model, siblings)
    if source.gated:  # the listing of a gated repo is public, its files are not: ask for one before promising
        with hub_errors(source.model, source.commit):
            get_hf_file_metadata(
                _url(source, "config.json"), token=token, timeout=TIMEOUT_S, endpoint=endpoint()
            )
    index = _read_json(source, INDEX, token) if SINGLE not in siblings else None
    names = needed_files(siblings, index)
    _check_scan(info, names)
    files = tuple(_hub_file(source, siblings[name], token) for name in names)
    return dataclasses.replace(source, files=files, licence=_licence(source.card))


def _hub_file(source: Source, sibling: RepoSibling, token: str | None) -> SourceFile:
    """A file as the listing describes it; a listing without sizes is completed by asking for the file."""
    name, size = sibling.rfilename, sibling.size
    if size is None:
        with hub_errors(source.model, source.commit):
            size = get_hf_file_metadata(
                _url(source, name), token=token, timeout=TIMEOUT_S, endpoint=endpoint()
            ).size
    return SourceFile(name, size or 0, sibling.lfs.sha256 if sibling.lfs else None)


def _check_weights(model: str, names: Iterable[str]) -> None:
    names = set(names)
    if SINGLE in names or INDEX in names:
        return
    others = sorted({match[1].lower() for name in names if (match := _OTHER_WEIGHTS.fullmatch(name))})
    if others:
        raise BadInput(
            f"{model} holds no safetensors (only .{', .'.join(others)});"
            " Tricksmith reads safetensors alone: convert it first"
        )
    raise BadInput(f"{model} has neither {SINGLE} nor {INDEX}; give a model with its weights")


def _check_scan(info: ModelInfo, names: list[str]) -> None:
    """Refuse a file that the Hub's own scanners call unsafe."""
    status = info.security_repo_status
    issues = status.get("filesWithIssues", []) if isinstance(status, dict) else []
    for issue in issues:
        if isinstance(issue, dict) and issue.get("level") == "unsafe" and issue.get("path") in names:
            raise BadInput(
                f"the Hub's scanners call {issue['path']} of {info.id} unsafe; choose another model"
            )


def _card_metadata(data: dict[str, Any]) -> dict[str, Any]:
    """The few facts of a source's card that stay true for its conversion."""
    return {key: data[key] for key in _CARD_KEYS if isinstance(data.get(key), (str, list)) and data[key]}


def _licence(card: dict[str, Any]) -> str | None:
    licence = card.get("license_name") if card.get("license") == "other" else None
    licence = licence or card.get("license")
    return licence if isinstance(licence, str) else None


def _front_matter(readme: Path) -> dict[str, Any]:
    """The metadata of a model card on disk; nothing where it has none that can be read."""
    if not readme.is_file():
        return {}
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", readme.read_text("utf-8", errors="replace"), re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once: a tensor named twice would silently be the later one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise BadInput(f"{next(key for key in names if names.count(key) > 1)!r} stands twice")
    return found


def _parse_json(data: bytes, what: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data, object_pairs_hook=_once)
    except BadInput as error:
        raise BadInput(
            f"in {what} {error}; the model is broken, choose another or tell its author"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{what} is not JSON; the model is broken, choose another or tell its author"
        ) from error
    if not isinstance(parsed, dict):
        raise BadInput(f"{what} is not a JSON object; the model is broken, choose another or tell its author")
    return parsed


def _url(source: Source, name: str) -> str:
    return hf_hub_url(source.model, name, revision=source.commit, endpoint=endpoint())


def _read_json(source: Source, name: str, token: str | None) -> dict[str, Any]:
    return _parse_json(_read_range(source, name, 0, _JSON_LIMIT, token), f"{name} of {source.model}")


def _read_range(source: Source, name: str, begin: int, end: int, token: str | None) -> bytes:
    """Bytes `begin` up to `end` (or the file's end) of a file, and no byte more whatever the server sends."""
    headers = build_hf_headers(token=token, library_name="tricksmith")
    # Identity: with compression, ranges and sizes would speak of other bytes than the file's.
    headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    found = bytearray()
    with (
        hub_errors(source.model, source.commit),
        http_stream_backoff("GET", _url(source, name), headers=headers, timeout=TIMEOUT_S) as response,
    ):
        hf_raise_for_status(response)
        skip = begin if response.status_code == 200 else 0  # 200: the server does not know ranges
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= skip + end - begin:
                break
    return bytes(found[skip : skip + end - begin])


def _read_header(source: Source, name: str, size: int, token: str | None) -> dict[str, Any]:
    """The JSON header of one safetensors file, whose length must agree with the file's."""
    broken = BadInput(
        f"{name} of {source.model} is truncated or no safetensors file; tell the model's author"
    )
    if size < 8:
        raise broken
    start = _read_range(source, name, 0, _HEADER_GUESS, token)
    if len(start) < 8:
        raise broken
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(_HEADER_LIMIT, size - 8):
        raise broken
    data = start[8 : 8 + length]
    if len(data) < length:
        data += _read_range(source, name, 8 + len(data), 8 + length, token)
    if len(data) < length:
        raise broken
    header = _parse_json(data, f"the header of {name} of {source.model}")
    try:
        last = max(
            (info["data_offsets"][1] for key, info in header.items() if key != "__metadata__"), default=0
        )
    except (KeyError, TypeError, IndexError) as error:
        raise broken from error
    if 8 + length + last != size:
        raise broken
    return header


def _is_there(folder: Path, file: SourceFile) -> bool:
    path = folder / file.name
    # The client moves a file to its name only when it is whole, and `_check_fetched` has read it once.
    return path.is_file() and path.stat().st_size == file.size


def _check_fetched(path: Path, file: SourceFile) -> None:
    """Take back a file that is not what the Hub announced."""
    good = path.stat().st_size == file.size
    if good and file.sha256 is not None:
        with path.open("rb") as stream:
            good = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    if not good:
        path.unlink()
        raise HubUnavailable(f"{file.name} arrived with other bytes than the Hub announced; try again")


def _counter(count: Callable[[int], None]) -> type[tqdm]:
    """A silent progress bar for the client that hands each file's byte count on; `count` may raise."""

    class Counter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self.seen = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self.seen += int(n or 0)
            count(self.seen)

    return Counter
