"""Publishing into a folder: copied beside the destination, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from service.fetch import check_space
from service.manifest import check_same_source, digest, read_manifest, with_lineage
from service.papers import write_manifest
from tricks import BadInput, Report

_CHUNK = 16 * 1024 * 1024  # bytes between two progress reports


def check_folder(path: Path) -> dict[str, Any] | None:
    """The manifest of what is at `path`, None where nothing is.

    Raises:
        BadInput: what is there is not ours.
    """
    if not path.exists() and not path.is_symlink():
        return None
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is None:
        raise BadInput(f"{path} exists and Tricksmith did not make it; choose another destination")
    return manifest


def publish_to_folder(
    folder: Path, path: Path, names: list[str], manifest: dict[str, Any], report: Report
) -> str:
    """At no moment is there a half-written folder of the destination's name; returns that name."""
    mark = digest(manifest)[:12]
    staging = path.with_name(f".{path.name}.{mark}.part")
    aside = path.with_name(f".{path.name}.old")
    if aside.is_dir() and not path.exists():  # an earlier replacement stopped between its two renames
        aside.rename(path)
    there = check_folder(path)
    if there is not None and digest(there) == digest(manifest):
        return str(path)
    check_same_source(there, manifest, str(path))
    write_manifest(folder, with_lineage(manifest, there))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    total = sum((folder / name).stat().st_size for name in names)
    check_space(path.parent, total, f"publishing to {path}")
    try:
        done = 0
        for name in names:
            done = _copy(folder / name, staging / name, done, total, report)
        for sub in {(staging / name).parent for name in names}:
            _sync_folder(sub)
        if there is not None:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        staging.rename(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); use another destination") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return str(path)


def _copy(source: Path, target: Path, done: int, total: int, report: Report) -> int:
    """Copy one file and force it to the disk; returns the bytes done so far."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_CHUNK):
            writer.write(block)
            done += len(block)
            report("bytes", done, total)
        writer.flush()
        os.fsync(writer.fileno())
    return done


def _sync_folder(path: Path) -> None:
    """Force a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
