"""Whether two checkpoints hold tensors of the same names and shapes."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open


def same_weights_laid_out(source: Path, converted: Path) -> bool:
    """Whether every tensor of the source is in the converted folder under its name, shape and type."""
    return _layout(source) == _layout(converted)


def _layout(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    layout = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                part = tensors.get_slice(name)
                layout[name] = (tuple(part.get_shape()), part.get_dtype())
    return layout
