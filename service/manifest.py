"""The manifest, `conversion.json`: what was made of what, by what, with every file's digest.

It says nothing about the machine beyond its kind: no paths, no names. Its digest leaves out time, machine and
lineage, so that the same conversion made twice is known to be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from service.source import Source
from tricks import BadInput, Conversion, Plan

MANIFEST = "conversion.json"
SCHEMA = 1
TOOL = "tricksmith"

_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub")
# What may differ between two runs of one conversion, or is known only when it is published.
_APART = frozenset({"created", "hardware", "follows"})
_SHA256 = re.compile(r"[0-9a-f]{64}")


def build_manifest(source: Source, plan: Plan, conversion: Conversion, source_folder: Path) -> dict[str, Any]:
    """Describe a conversion of the files in `source_folder`, whose SHA-256 are taken here.

    A digest that the Hub announced is taken over: `fetch` has checked the file against it. A local folder may
    hold more files that were copied than the source lists: they are inputs too.
    """
    announced = {file.name: file.sha256 for file in source.files}
    copied = {name for name in conversion.files if (source_folder / name).is_file()}
    names = sorted(copied.union(announced))
    read = file_digests(source_folder, [name for name in names if announced.get(name) is None])
    return {
        "schema": SCHEMA,
        "tool": {"name": TOOL, "version": _version(TOOL)},
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": {
            "id": source.model,
            "kind": "folder" if source.folder is not None else "hub",
            "commit": source.commit,
            "files": {name: announced.get(name) or read[name] for name in names},
        },
        "hardware": _hardware(),
        "seeds": {"conversion": None},  # it draws no random number; those of the evidence are with it
        "recipe": [str(trick) for trick in plan.tricks],
        "architecture": plan.architecture,
        "lossless": plan.lossless,
        "proof": plan.proof,
        "conditions": {name: f"{worst:.1e}" for name, worst in sorted(conversion.conditions.items())},
        "files": dict(sorted(conversion.files.items())),
    }


def versions() -> dict[str, str | None]:
    """What a conversion is made with, here and now."""
    return {
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def digest(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the manifest's canonical JSON without its time, machine and lineage."""
    kept = {key: value for key, value in manifest.items() if key not in _APART}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def with_lineage(
    manifest: dict[str, Any], former: dict[str, Any] | None, commit: str | None = None
) -> dict[str, Any]:
    """`manifest` with what it takes the place of: the `former` conversion, at `commit` of its repo."""
    if former is None or digest(former) == digest(manifest):
        return manifest
    follows = {"manifest": digest(former), "source": former["source"].get("commit"), "commit": commit}
    return {**manifest, "follows": follows}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that Tricksmith made; None for any other folder."""
    path = folder / MANIFEST
    return parse_manifest(path.read_bytes()) if path.is_file() else None


def parse_manifest(data: bytes) -> dict[str, Any] | None:
    """The manifest that `data` holds, None where it is not one of ours. Its names stay in their folder."""
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        return None
    tool, source, recipe = manifest.get("tool"), manifest.get("source"), manifest.get("recipe")
    if not isinstance(tool, dict) or tool.get("name") != TOOL or not isinstance(recipe, list):
        return None
    if not isinstance(source, dict) or not _are_digests(source.get("files")):
        return None
    return manifest if _are_digests(manifest.get("files")) else None


def check_same_source(there: dict[str, Any] | None, manifest: dict[str, Any], to: str) -> None:
    """One model's conversion is not written over another's, though both are ours.

    Raises:
        BadInput: `there`, the manifest at `to`, is of another source.
    """
    if there is None:
        return
    former, now = (str(one.get("source", {}).get("id")) for one in (there, manifest))
    if former.casefold() != now.casefold():
        raise BadInput(f"{to} holds the conversion of {former}, not of {now}; choose another name")


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Hold a converted folder to its manifest.

    Raises:
        BadInput: a file is missing or has other bytes than were converted.
    """
    files: dict[str, str] = manifest["files"]
    for name, found in file_digests(folder, files).items():
        if found != files[name]:
            raise BadInput(f"{name} is not the file that was converted; convert again")


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 (hex) of files in `folder`, several at a time (hashing leaves the interpreter free)."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BadInput(f"{path.name} is missing; convert again") from error


def _are_digests(files: Any) -> bool:
    return isinstance(files, dict) and all(
        _is_plain(name) and _SHA256.fullmatch(str(value)) for name, value in files.items()
    )


def _hardware() -> dict[str, Any]:
    """The kind of machine: processor, cores, memory in GB."""
    memory = round(psutil.virtual_memory().total / 1e9)
    return {"machine": platform.machine(), "cores": os.cpu_count(), "memory_gb": memory}


def _is_plain(name: str) -> bool:
    """Whether a file name stays inside its folder."""
    parts = name.split("/")
    return bool(name) and "\\" not in name and not any(part in ("", ".", "..") for part in parts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        pass
    # Run from a checkout that was never installed: it says its version itself.
    project = Path(__file__).parents[1] / "pyproject.toml"
    if package != TOOL or not project.is_file():
        return None
    with project.open("rb") as stream:
        return str(tomllib.load(stream)["project"]["version"])
