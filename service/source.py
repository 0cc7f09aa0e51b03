"""A source: one model at one commit of the Hub, or a local folder, and which of its files are needed.

How it works: `resolve` asks the Hub once, pins the commit and lists the needed files, so that everything
later (`service.headers`, `service.fetch`) speaks of the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelInfo, get_hf_file_metadata

from service.headers import INDEX, SINGLE, content_length, parse_json, read_json, read_range, url
from service.hub import TIMEOUT_S, HubUnavailable, ask, endpoint, gated, hub, is_hub_id
from service.listing import Listed, describe, files_in, known
from service.papers import CARD
from tricks import BadInput, companions, files_of

_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|pkl|ckpt|h5|msgpack|onnx|gguf)", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)
_CARD_LIMIT = 1_000_000  # bytes of a card, whose metadata stand first
_CARD_KEYS = ("license", "license_name", "license_link", "language", "tags", "library_name", "pipeline_tag")


@dataclass(frozen=True)
class SourceFile:
    """One file that a conversion needs: bytes, and what the Hub states of them.

    That is the SHA-256 (hex) of a large file, and Git's blob id (hex) of a small one.
    """

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


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


def resolve(model: str, token: str | bool | None = None) -> Source:
    """Find `model`, a folder or a Hub id with an optional `@revision`, and pin it to one commit.

    Raises:
        BadInput: malformed, missing, gated without access, disabled, unsafe, or without safetensors.
    """
    text = model.strip()
    if not text:
        raise BadInput("no model given; write a folder or a Hub id such as org/name")
    if any(ord(char) < 32 for char in text):
        raise BadInput(f"{text!r} holds a control character; write a folder or a Hub id such as org/name")
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
        index = parse_json((folder / INDEX).read_bytes(), f"{INDEX} of {path}")
    files = tuple(SourceFile(name, (folder / name).stat().st_size) for name in needed_files(names, index))
    card = _card_metadata(_front_matter(folder / CARD))
    return Source(
        model=folder.name,
        folder=str(folder),
        licence=_licence(card),
        files=files,
        card=card,
    )


def _resolve_hub(model: str, revision: str | None, token: str | bool | None) -> Source:
    api = hub(token)
    info = describe(api, model, revision, details=True)
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
        card=_card_metadata(_card_data(info)),
    )
    listed = files_in(api, info, details=True)
    if "config.json" not in listed:
        raise BadInput(f"{model} has no config.json; give a transformers model")
    _check_weights(model, listed)
    source = _as_strangers_see(source, info)
    if source.gated:  # the listing of a gated repo is public, its files are not: ask for one before promising
        _check_access(source, token)
    if info.card_data is None and CARD in listed:  # a Hub that reads no cards
        data = _in_front_matter(read_range(source, CARD, 0, _CARD_LIMIT, token).decode("utf-8", "replace"))
        source = dataclasses.replace(source, card=_card_metadata(data) or source.card)
    index = read_json(source, INDEX, token) if SINGLE not in listed else None
    names = needed_files(listed, index)
    _check_scan(info, names)
    files = tuple(_hub_file(source, name, listed[name], token) for name in names)
    return dataclasses.replace(source, files=files, licence=_licence(source.card))


def _as_strangers_see(source: Source, info: ModelInfo) -> Source:
    """The source with what its description leaves out: is it private, is it gated? A stranger is told no."""
    private, gated = source.private, source.gated
    if info.private is None:
        private = _is_refused(lambda: describe(hub(False), source.model, source.commit))
    if info.gated is None and not private:
        gated = _is_refused(lambda: _ask_for_file(source, "config.json", False))
    return dataclasses.replace(source, private=private, gated=gated)


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except HubUnavailable:
        raise
    except BadInput:
        return True
    return False


def _hub_file(source: Source, name: str, listed: Listed, token: str | bool | None) -> SourceFile:
    """A file as the listing describes it; where that is not enough, the Hub is asked for the file itself."""
    # Of a file in large file storage Git's id is that of a pointer: only its SHA-256 says what it holds.
    if not listed.is_told or (listed.sha256 is None and name.endswith(".safetensors")):
        told = _ask_for_file(source, name, token)
        size = told.size if listed.size is None else listed.size
        listed = Listed(size, listed.sha256 or told.sha256, None if told.sha256 else listed.blob or told.blob)
    size = content_length(source, name, token) if listed.size is None else listed.size
    return SourceFile(name, size, listed.sha256, None if listed.sha256 else listed.blob)


def _ask_for_file(source: Source, name: str, token: str | bool | None) -> Listed:
    """What the headers of one file say: the Hub's ETags are the digests of what they stand for."""
    told = ask(
        source.model,
        lambda: get_hf_file_metadata(url(source, name), token=token, timeout=TIMEOUT_S, endpoint=endpoint()),
        source.commit,
    )
    return known(told.size, told.etag)


def _check_access(source: Source, token: str | bool | None) -> None:
    try:
        _ask_for_file(source, "config.json", token)
    except HubUnavailable:
        raise
    except BadInput as error:  # whatever the status says: the repo is gated, and this was not let in
        raise BadInput(gated(source.model)) from error


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
    status = info.security_repo_status or getattr(info, "securityStatus", None)
    issues = status.get("filesWithIssues") or [] if isinstance(status, dict) else []
    for issue in issues:
        if isinstance(issue, dict) and issue.get("level") == "unsafe" and issue.get("path") in names:
            raise BadInput(
                f"the Hub's scanners call {issue['path']} of {info.id} unsafe; choose another model"
            )


def _card_data(info: ModelInfo) -> dict[str, Any]:
    """The card's metadata; where the Hub gives none, at least the licence that its tags name."""
    data = info.card_data.to_dict() if info.card_data is not None else {}
    named = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return data if data.get("license") or not named else {**data, "license": named[0]}


def _card_metadata(data: dict[str, Any]) -> dict[str, Any]:
    """The few facts of a source's card that stay true for its conversion."""
    return {key: data[key] for key in _CARD_KEYS if isinstance(data.get(key), (str, list)) and data[key]}


def _licence(card: dict[str, Any]) -> str | None:
    licence = card.get("license_name") if card.get("license") == "other" else None
    licence = licence or card.get("license")
    return licence if isinstance(licence, str) else None


def _front_matter(readme: Path) -> dict[str, Any]:
    """The metadata of a model card on disk; nothing where it has none that can be read."""
    return _in_front_matter(readme.read_text("utf-8", errors="replace")) if readme.is_file() else {}


def _in_front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}
