"""Marks that stages leave in a job's work folder, so that a second attempt goes on where the first was.

A mark is one JSON file that appears whole or not at all, and only after its stage's product is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from service.jobs import Stage


class Marks:
    """The marks of one job, in `folder/marks`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "marks"
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, stage: Stage) -> dict[str, Any] | None:
        """What the stage left, or None."""
        try:
            found = json.loads(self._path(stage).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, stage: Stage, product: dict[str, Any]) -> None:
        """The stage is done; whatever later stages made of an older product counts no more."""
        self.drop_after(stage)
        path = self._path(stage)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(product, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def drop(self, stage: Stage) -> None:
        """Forget the stage and all later ones."""
        self._path(stage).unlink(missing_ok=True)
        self.drop_after(stage)

    def drop_after(self, stage: Stage) -> None:
        """Forget all stages later than `stage`."""
        stages = list(Stage)
        for later in stages[stages.index(stage) + 1 :]:
            self._path(later).unlink(missing_ok=True)

    def _path(self, stage: Stage) -> Path:
        return self._folder / f"{stage.value}.json"


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
