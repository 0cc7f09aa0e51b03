"""The papers in a converted folder: manifest, evidence with its picture, and card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tricks import Plan

CARD = "README.md"
MANIFEST = "conversion.json"
EVIDENCE = "evidence.json"
PICTURE = "evidence.png"


def write_papers(
    folder: Path,
    *,
    card: str,
    manifest: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    picture: bytes | None = None,
) -> None:
    """Write what is given into `folder`; each file appears whole."""
    if manifest is not None:
        write_manifest(folder, manifest)
    if evidence is not None:
        _write(folder / EVIDENCE, _json(evidence))
    if picture is not None:
        _write(folder / PICTURE, picture)
    _write(folder / CARD, card)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest anew; it appears whole."""
    _write(folder / MANIFEST, _json(manifest))


def no_fit(plan: Plan) -> str:
    """Why a plan without any place is not carried out: one line."""
    recipe = ", ".join(str(trick) for trick in plan.tricks)
    why = list(dict.fromkeys(place.detail for place in plan.places))
    reasons = "; ".join(why[:3]) if why else "it has no place of that kind"
    return f"{recipe} fits nowhere in {plan.model} ({plan.architecture}): {reasons}"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, content: str | bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
