"""A source's headers: its config and the first bytes of each weight file, so that a plan costs kilobytes."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from service.hub import TIMEOUT_S, ask, endpoint, hub
from tricks import BadInput, Checkpoint, checkpoint_from_headers, read_checkpoint

if TYPE_CHECKING:
    from service.source import Source

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_HEADER_GUESS = 100_000  # bytes; the header of nearly every safetensors file on the Hub is smaller
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
_JSON_LIMIT = 100_000_000  # bytes of config.json or the index


def read_headers(source: Source, token: str | bool | None = None) -> Checkpoint:
    """Read the config and every weight file's header; of a Hub model, no weight is downloaded.

    Raises:
        BadInput: a file is missing, truncated or not what its name says.
    """
    if source.folder is not None:
        return read_checkpoint(Path(source.folder))
    sizes = {file.name: file.size for file in source.files}
    config = read_json(source, "config.json", token)
    index = read_json(source, INDEX, token) if SINGLE not in sizes else None
    with ThreadPoolExecutor(max_workers=8) as pool:
        # Each in a copy of this context: its patience with the Hub is theirs too.
        reads = [
            pool.submit(copy_context().run, _read_header, source, name, sizes[name], token)
            for name in source.weights
        ]
        headers = {name: read.result() for name, read in zip(source.weights, reads, strict=True)}
    return checkpoint_from_headers(config, headers, index, source.model)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once: a tensor named twice would silently be the later one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise BadInput(f"{next(key for key in names if names.count(key) > 1)!r} stands twice")
    return found


def parse_json(data: bytes, what: str) -> dict[str, Any]:
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


def url(source: Source, name: str) -> str:
    address: str = hf_hub_url(source.model, name, revision=source.commit, endpoint=endpoint())
    return address


def read_json(source: Source, name: str, token: str | bool | None) -> dict[str, Any]:
    return parse_json(read_range(source, name, 0, _JSON_LIMIT, token), f"{name} of {source.model}")


def content_length(source: Source, name: str, token: str | bool | None) -> int:
    """The size of a file in bytes, from the answer to a question for its first one.

    Raises:
        BadInput: the Hub does not say.
    """

    def once() -> int | None:
        with http_stream_backoff("GET", url(source, name), headers=_asking(token, 0, 1)) as response:
            hf_raise_for_status(response)
            whole = response.headers.get("content-range", "").rpartition("/")[2]
            if response.status_code == 200:  # the server does not know ranges
                whole = response.headers.get("content-length", "")
            return int(whole) if whole.isdecimal() else None

    size = ask(source.model, once, source.commit)
    if size is None:
        raise BadInput(f"the Hub does not say how large {name} of {source.model} is; choose another model")
    return size


def _asking(token: str | bool | None, begin: int, end: int) -> dict[str, str]:
    """Headers of a request for bytes `begin` up to `end`."""
    hub(token)  # our client, with its time limits
    headers: dict[str, str] = build_hf_headers(token=token, library_name="tricksmith")
    # Identity: with compression, ranges and sizes would speak of other bytes than the file's.
    return headers | {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}


def read_range(source: Source, name: str, begin: int, end: int, token: str | bool | None) -> bytes:
    """Bytes `begin` up to `end` (or the file's end) of a file, and no byte more whatever the server sends."""
    headers = _asking(token, begin, end)

    def once() -> bytes:
        found = bytearray()
        with http_stream_backoff("GET", url(source, name), headers=headers, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            skip = begin if response.status_code == 200 else 0  # 200: the server does not know ranges
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) >= skip + end - begin:
                    break
        return bytes(found[skip : skip + end - begin])

    return ask(source.model, once, source.commit)


def _read_header(source: Source, name: str, size: int, token: str | bool | None) -> dict[str, Any]:
    """The JSON header of one safetensors file, whose length must agree with the file's."""
    broken = BadInput(
        f"{name} of {source.model} is truncated or no safetensors file; tell the model's author"
    )
    if size < 8:
        raise broken
    start = read_range(source, name, 0, _HEADER_GUESS, token)
    if len(start) < 8:
        raise broken
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(_HEADER_LIMIT, size - 8):
        raise broken
    data = start[8 : 8 + length]
    if len(data) < length:
        data += read_range(source, name, 8 + len(data), 8 + length, token)
    if len(data) < length:
        raise broken
    header = parse_json(data, f"the header of {name} of {source.model}")
    try:
        last = max(
            (info["data_offsets"][1] for key, info in header.items() if key != "__metadata__"), default=0
        )
    except (KeyError, TypeError, IndexError) as error:
        raise broken from error
    if 8 + length + last != size:
        raise broken
    return header
