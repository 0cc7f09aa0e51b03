"""A checkpoint as its config and safetensors headers describe it: no weight is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def checkpoint_from_headers(
    config: dict[str, Any], headers: Mapping[str, Mapping[str, Any]], index: dict[str, Any] | None, name: str
) -> Checkpoint:
    """Check and join the headers of all weight files."""
    raise NotImplementedError


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read `config.json` and the safetensors headers of a local folder."""
    raise NotImplementedError
