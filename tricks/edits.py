"""What a conversion does to tensors. Edits name checkpoint tensors, never parameters.

Edits are carried out in their order: each sees the tensors as the ones before it left them, in float64 and
unrounded; a tensor is rounded once, when it is stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
    """Add W·β to the bias `tensor` [k]: `weight` as it stands at this point, contracted along its `axis`
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


@dataclass(frozen=True)
class Center:
    """Subtract from `tensor` its mean along `axis`."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Drop:
    """Leave `tensor` out of the result."""

    tensor: str


@dataclass(frozen=True)
class New:
    """A tensor that a `Make` writes: its name, its safetensors dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Make:
    """Write new tensors (or replace old ones) by a registered operation (see `operations`).

    `inputs` maps the operation's roles to tensors, `outputs` its results to what is stored. The new tensors
    stand in the weight file of the first input.
    """

    operation: str
    inputs: dict[str, str]
    outputs: dict[str, New]
    options: dict[str, Any] = field(default_factory=dict)


Edit = Scale | Shift | Fill | Center | Drop | Make
_KINDS: dict[str, type[Edit]] = {
    kind.__name__.lower(): kind for kind in (Scale, Shift, Fill, Center, Drop, Make)
}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """One edit as plain JSON types."""
    return {"kind": type(edit).__name__.lower(), **asdict(edit)}


def edit_from_json(data: dict[str, Any]) -> Edit:
    """The inverse of `edit_to_json`."""
    fields = dict(data)
    kind = _KINDS[fields.pop("kind")]
    if kind is Make:
        fields["outputs"] = {
            role: New(new["name"], new["dtype"], tuple(new["shape"]))
            for role, new in fields["outputs"].items()
        }
    return kind(**fields)
