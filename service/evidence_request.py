"""What evidence a job shall gather, as a face asks for it and as the job's record keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.source import Source
from tricks import BadInput

if TYPE_CHECKING:  # evals brings torch, which a list of jobs does not need
    from evals import MemoryLimit, Recipe

_TASK = re.compile(r"[A-Za-z0-9][\w.-]*")
# NAMESPACE/NAME[:CONFIG][@SPLIT][#COLUMN], or the short name of WikiText-2
_TEXT = re.compile(r"wikitext-2|[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?(@\w+)?(#\w+)?")
_LONGEST = 20_000  # characters of a recipe of one's own


@dataclass(frozen=True)
class EvidenceRequest:
    """How much a job measures.

    `recipe` is `quick`, `standard`, `full`, or the content (not the name) of a YAML recipe; `tasks` and
    `text` are used instead of the recipe's own. `max_memory` is written `8GiB` or `cuda=20GiB,cpu=8GiB`.
    `files` says that tasks and text may name files of this machine: a task's YAML file may run code, so only
    the command line of whoever runs this installation says so, never a page.
    """

    recipe: str = "quick"
    tasks: tuple[str, ...] = ()
    text: str | None = None
    max_memory: str | None = None
    files: bool = False

    def settled(self) -> dict[str, Any]:
        """What the job's record keeps: `recipe`, all of it, and `max_memory`.

        Raises:
            BadInput: no such recipe, an entry that makes no sense, or a file where none may be named.
        """
        from evals import RECIPES, change_recipe, parse_memory, parse_recipe

        if len(self.recipe) > _LONGEST:
            raise BadInput(
                f"this recipe has {len(self.recipe):,} characters; a recipe has up to {_LONGEST:,}"
            )
        recipe = RECIPES.get(self.recipe) or parse_recipe(self.recipe)
        recipe = change_recipe(recipe, {"tasks": list(self.tasks) or None, "text": self.text or None})
        if self.max_memory:
            parse_memory(self.max_memory)
        if self.files:
            recipe = change_recipe(recipe, _absolute(recipe))
        else:
            _check_names(recipe)
        return {"recipe": recipe.to_json(), "max_memory": self.max_memory or None}


def seconds_for(kept: Mapping[str, Any], source: Source) -> float:
    """How long the evidence will take on this machine, about: `source` is taken for 16-bit weights."""
    import torch

    from evals import estimate_for

    return estimate_for(max(1, source.size_bytes // 2), torch.bfloat16, recipe_of(kept))


def recipe_of(kept: Mapping[str, Any] | None) -> Recipe:
    """The recipe that a job's record asks for; `quick` where it says nothing."""
    from evals import RECIPES, change_recipe

    return RECIPES["quick"] if kept is None else change_recipe(RECIPES["quick"], dict(kept["recipe"]))


def wants_data(kept: Mapping[str, Any] | None) -> bool:
    """Whether a job's record asks for tasks or a text that neither the package nor a file holds, maybe."""
    if kept is None:
        return False
    text = kept["recipe"].get("text")
    away = text is not None and not Path(text.partition("#")[0]).is_file()
    return away or not all(task.startswith("tricksmith_") for task in kept["recipe"].get("tasks") or ())


def memory_of(kept: Mapping[str, Any] | None) -> MemoryLimit:
    """The memory limit that a job's record asks for; none where it says nothing."""
    from evals import MemoryLimit, parse_memory

    return parse_memory(kept["max_memory"]) if kept and kept.get("max_memory") else MemoryLimit()


def is_default(kept: Mapping[str, Any] | None) -> bool:
    """Whether a job's record asks for what a job measures unasked."""
    from evals import RECIPES

    return kept is None or (kept["recipe"] == RECIPES["quick"].to_json() and not kept.get("max_memory"))


def _absolute(recipe: Recipe) -> dict[str, Any]:
    """Files under their whole path: the job's process stands elsewhere."""
    tasks = [str(Path(task).absolute()) if Path(task).is_file() else task for task in recipe.tasks]
    text = recipe.text
    if text is not None and Path(text.partition("#")[0]).is_file():
        name, mark, column = text.partition("#")
        text = f"{Path(name).absolute()}{mark}{column}"
    return {"tasks": tasks or None, "text": text}


def _check_names(recipe: Recipe) -> None:
    for task in recipe.tasks:
        if not _TASK.fullmatch(task) or task.endswith((".yaml", ".yml")):
            raise BadInput(
                f"{task[:100]!r} is no lm-eval task's name; files are taken on the command line alone"
            )
    if recipe.text is not None and not _TEXT.fullmatch(recipe.text):
        raise BadInput(f"{recipe.text[:100]!r} is no data set of the Hub; write NAMESPACE/NAME or wikitext-2")
