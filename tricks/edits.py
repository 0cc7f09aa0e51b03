"""What a conversion does to one tensor. Edits name checkpoint tensors, never parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Multiply `tensor` along `axis` by `offset + gain`."""

    tensor: str
    axis: int
    gain: str
    offset: float


@dataclass(frozen=True)
class Shift:
    """Add W·β to the bias `tensor` [k]: `weight` as the source stores it, contracted along its `axis`
    with the vector `by` [n]."""

    tensor: str
    weight: str
    axis: int
    by: str


@dataclass(frozen=True)
class Fill:
    """Set every element of `tensor` to `value`."""

    tensor: str
    value: float


Edit = Scale | Shift | Fill
_KINDS: dict[str, type[Scale] | type[Shift] | type[Fill]] = {"scale": Scale, "shift": Shift, "fill": Fill}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """One edit as plain JSON types."""
    return {"kind": type(edit).__name__.lower(), **asdict(edit)}


def edit_from_json(data: dict[str, Any]) -> Edit:
    """The inverse of `edit_to_json`."""
    fields = dict(data)
    return _KINDS[fields.pop("kind")](**fields)
