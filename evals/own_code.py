"""Modelling code in a converted folder: run only when it is, byte for byte, what `tricks` ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from tricks import BadInput, Plan
from tricks.ship import SHIPPED, shipped_code


def runs_own_code(folder: Path, config: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Whether the folder's model needs modelling files of its own, all of them Tricksmith's.

    Names prove nothing, and neither does the folder's own manifest: the code is written again from the
    source's configuration and compared.

    Args:
        config: the converted folder's `config.json`.
        source: the source's.

    Raises:
        BadInput: the model asks for code that Tricksmith did not write.
    """
    named = config.get("auto_map")
    if not named:
        return False
    targets = _targets(named)
    found = {file.name: file.read_bytes() for file in folder.glob("*.py")}
    away = [target for target in targets if "--" in target or f"{target.split('.')[0]}.py" not in found]
    if away or not targets:
        what = away[0] if away else "an auto_map of another form"
        raise BadInput(f"{folder} asks for code that is not in it ({what}); it is never fetched or run")
    nearest = min(
        (sorted(name for name in found if found[name] != ours.get(name)) for ours in _ours(config, source)),
        key=len,
        default=sorted(found),
    )
    if nearest:
        raise BadInput(
            f"{folder} brings code that this version of Tricksmith does not ship for its source "
            f"({nearest[0]}), so it is not run; convert the model again"
        )
    return True


def _targets(named: Any) -> list[str]:
    if not isinstance(named, dict):
        return []
    entries = [entry for value in named.values() for entry in (value if isinstance(value, list) else [value])]
    return [str(entry) for entry in entries if entry is not None]


def _ours(config: Mapping[str, Any], source: Mapping[str, Any]) -> Iterator[dict[str, bytes]]:
    """Every set of files that `tricks` may have written for this source and these parts."""
    marks = config.get("tricksmith")
    parts = [name for name in (marks or ()) if (SHIPPED / f"modeling_{name}.py").is_file()]
    architectures = source.get("architectures") or []
    if not architectures or not parts or "model_type" not in source:
        return
    for order in permutations(parts):
        for stock_loads in (True, False):
            plan = Plan("", str(architectures[0]), (), (), parts=order, stock_loads=stock_loads)
            try:
                files = shipped_code(plan, source)
            except (AttributeError, KeyError):
                return  # no architecture of this transformers
            yield {name: text.encode("utf-8") for name, text in files.items()}
