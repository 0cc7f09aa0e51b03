"""A checkpoint as its config and safetensors headers describe it: no weight is read here.

Everything that comes from a file is distrusted: a header may be cut, lie about sizes or overlap, and an
index may name files that are missing or lie outside the folder.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tricks.errors import BadInput

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""

MOST_DIMS = 64  # as many as torch has
MOST_SIZE = 2**63 - 1  # what a file, or a dimension, can measure

WIDTHS = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
"""Bytes per element of the safetensors dtypes."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a safetensors file; `begin` and `end` are byte offsets behind the header."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensors of one model; `files` are its weight files in order."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]
    index: str | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.end - t.begin for t in self.tensors.values())


def parse_header(raw: bytes, data_bytes: int | None, file: str, name: str) -> dict[str, TensorInfo]:
    """Read and check one safetensors header.

    Args:
        raw: the JSON text of the header, without its eight length bytes.
        data_bytes: length of the file behind the header, if known.

    Raises:
        BadInput: the header is no JSON, lies about a size, overlaps, or reaches beyond the file.
    """
    where = f"{name}: {file}"
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} has a damaged safetensors header; download it again") from error
    if not isinstance(header, dict):
        raise BadInput(f"{where} has a damaged safetensors header; download it again")
    return check_header(header, data_bytes, file, name)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SIZE


def is_text(name: str) -> bool:
    """Whether a name can be written down: JSON can spell halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_header(
    header: Mapping[str, Any], data_bytes: int | None, file: str, name: str
) -> dict[str, TensorInfo]:
    """`parse_header` for a header that is parsed already."""
    where = f"{name}: {file}"
    tensors: dict[str, TensorInfo] = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        try:
            dtype = entry["dtype"]
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{where} describes {key!r} in a way safetensors does not; download it again"
            ) from error
        if not is_text(key):
            raise BadInput(f"{where} names a tensor {key!r}, which is no text; download it again")
        if not isinstance(dtype, str) or dtype not in WIDTHS:
            raise BadInput(
                f"{where} stores {key!r} as {str(dtype)[:20]}, which cannot be converted; "
                "use a float checkpoint"
            )
        sizes = (*shape, begin, end)
        # The bounds are checked before anything is multiplied: a product of a million factors takes days.
        if len(shape) > MOST_DIMS or not all(map(_is_size, sizes)):
            raise BadInput(f"{where} gives {key!r} an impossible shape or place; download it again")
        if end - begin != WIDTHS[dtype] * math.prod(shape):
            raise BadInput(
                f"{where} gives {key!r} {end - begin} bytes, which is not what its shape needs; "
                "download it again"
            )
        tensors[key] = TensorInfo(key, file, dtype, shape, begin, end)
    place = 0
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != place:
            raise BadInput(
                f"{where} has tensors that overlap or leave holes (at {tensor.name!r}); download it again"
            )
        place = tensor.end
    if data_bytes is not None and place != data_bytes:
        wrong = "is cut short" if data_bytes < place else "has bytes that belong to no tensor"
        raise BadInput(f"{where} {wrong} ({data_bytes} of {place} bytes); download it again")
    return tensors


def checkpoint_from_headers(
    config: dict[str, Any],
    headers: Mapping[str, Mapping[str, Any]],
    index: dict[str, Any] | None,
    name: str,
    data_bytes: Mapping[str, int] | None = None,
) -> Checkpoint:
    """Check and join the headers of all weight files.

    Args:
        config: the parsed `config.json`.
        headers: file name -> parsed safetensors header.
        index: the parsed `model.safetensors.index.json`, if there is one.
        name: how errors name the model.
        data_bytes: file name -> bytes behind the header, where known.

    Raises:
        BadInput: the files, headers and index do not fit together.
    """
    parts = {
        file: check_header(headers[file], (data_bytes or {}).get(file), file, name)
        for file in sorted(headers)
    }
    return _join(config, parts, index, name)


def _join(
    config: dict[str, Any],
    parts: Mapping[str, dict[str, TensorInfo]],
    index: dict[str, Any] | None,
    name: str,
) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    for file, part in parts.items():
        for key, tensor in part.items():
            if key in tensors:
                raise BadInput(
                    f"{name}: tensor {key!r} stands in both {tensors[key].file} and {file}; keep one"
                )
            tensors[key] = tensor
    if index is not None:
        for key, file in weight_map(index, name).items():
            if key not in tensors or tensors[key].file != file:
                raise BadInput(
                    f"{name}: {INDEX} says {key!r} is in {file}, but it is not; download the model again"
                )
    if not tensors:
        raise BadInput(f"{name} holds no tensors; choose a checkpoint with weights")
    return Checkpoint(name, config, tensors, tuple(parts), INDEX if index is not None else None)


def weight_map(index: Any, name: str) -> dict[str, str]:
    """Tensor name -> file name of an index; every name is checked to be a plain safetensors file name.

    Raises:
        BadInput: no weight map, or a name that leaves the folder or is no safetensors file.
    """
    entries = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise BadInput(f"{name}: {INDEX} holds no weight_map; download the model again")
    for file in entries.values():
        plain = isinstance(file, str) and Path(file).name == file and "\\" not in file and "\0" not in file
        if not plain or file in (".", ".."):
            raise BadInput(
                f"{name}: {INDEX} names {file!r}, a file outside the model's folder; it was not read"
            )
        if not file.endswith(".safetensors"):
            raise BadInput(f"{name}: {INDEX} names {file!r}, which is no safetensors file; it was not read")
    return dict(entries)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadInput(f"{twice!r} is named twice")
    return result


def read_json(path: Path, name: str) -> dict[str, Any]:
    """One JSON object from a model's folder.

    Raises:
        BadInput: missing, unreadable, no object, or a key that stands twice.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except FileNotFoundError as error:
        raise BadInput(
            f"{name} has no {path.name}; give a folder or Hub id of a transformers model"
        ) from error
    except BadInput as error:
        raise BadInput(f"{name}: in {path.name} {error}; keep one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{name}: {path.name} cannot be read as JSON; download it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{name}: {path.name} is no JSON object; download it again")
    return value


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read `config.json` and the safetensors headers of a local folder.

    Raises:
        BadInput: whatever is missing, damaged or does not fit together, in one line.
    """
    name = str(folder)
    if not folder.is_dir():
        raise BadInput(f"{name} is no folder; give a model's folder or a Hub id like org/name")
    config = read_json(folder / "config.json", name)
    # As transformers chooses where a folder holds both layouts.
    sharded = (folder / INDEX).exists() and not (folder / SINGLE).exists()
    index = read_json(folder / INDEX, name) if sharded else None
    if index is not None:
        files = sorted(set(weight_map(index, name).values()))
    elif (folder / SINGLE).exists():
        files = [SINGLE]
    else:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise BadInput(
                f"{name} has no safetensors, only {pickles[0]}, which can run code when read; "
                "save it again with save_pretrained(..., safe_serialization=True)"
            )
        raise BadInput(f"{name} has no {SINGLE} and no {INDEX}; give a folder with safetensors weights")
    parts = {file: _read_header(folder / file, name) for file in files}
    return _join(config, parts, index, name)


def _read_header(path: Path, name: str) -> dict[str, TensorInfo]:
    if not os.path.isfile(path):  # where pathlib raises for a name that is too long
        raise BadInput(f"{name}: {INDEX} names {path.name[:200]}, which is missing; download the model again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MOST_HEADER, size - 8):
            raise BadInput(f"{name}: {path.name} is cut short or no safetensors file; download it again")
        raw = file.read(length)
    return parse_header(raw, size - 8 - length, path.name, name)
