"""Modelling code in a converted folder: run only when it is, byte for byte, what `tricks` ships."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tricks
from tricks import BadInput


@cache
def shipped() -> frozenset[str]:
    """The SHA-256 of every Python file that comes with the `tricks` package."""
    package = Path(tricks.__file__).parent
    return frozenset(_digest(file) for file in package.rglob("*.py"))


def runs_own_code(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder's model needs modelling files of its own, all of them Tricksmith's.

    Names prove nothing, and neither does the folder's own manifest: the bytes are compared.

    Raises:
        BadInput: the model asks for code that Tricksmith did not write.
    """
    named = config.get("auto_map")
    if not named:
        return False
    if not isinstance(named, dict):
        raise BadInput(f"{folder / 'config.json'} has an auto_map that is no object; convert the model again")
    known = shipped()
    for entry in named.values():
        for target in entry if isinstance(entry, list) else [entry]:
            if target is None:
                continue
            file = folder / f"{str(target).split('.', 1)[0]}.py"
            if "--" in str(target) or not file.is_file():
                raise BadInput(
                    f"{folder} asks for code that is not in it ({target}); it is never fetched or run"
                )
    foreign = [file.name for file in sorted(folder.glob("*.py")) if _digest(file) not in known]
    if foreign:
        raise BadInput(
            f"{folder} brings code that this version of Tricksmith did not write ({foreign[0]}), "
            "which is never run; convert the model again"
        )
    return True


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
