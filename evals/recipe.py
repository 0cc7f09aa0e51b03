"""Recipes: how much evidence is gathered. `quick`, `standard`, `full`, or a YAML file of one's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tricks import BadInput

DEEPEST = 4  # collections in collections of a recipe

CUTS = {
    "sliding": "windows that overlap by a quarter",
    "rolling": "lm-evaluation-harness's rolling windows, without overlap",
    "chunks": "separate stretches, as `perplexity` of transformer-tricks cuts them",
}


@dataclass(frozen=True)
class Recipe:
    """What to measure.

    `tokens` of the text are scored in windows of at most `window`, cut as `cut` says; `text` names the text
    (see `evals.text.load_text`), None is the one in the package. `tasks` are lm-eval tasks: names, groups,
    paths of YAML files; at most `limit` documents of each, `fewshot` examples (None: as the task says), with
    or without the chat template, in batches of `batch`. `margin` is the largest difference of a task's score,
    and `loss_margin` of the mean loss in nats per token, that still counts as the same.
    """

    name: str = "quick"
    tokens: int = 4096
    window: int = 512
    cut: str = "sliding"
    text: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    fewshot: int | None = None
    chat_template: bool = False
    batch: int = 8
    margin: float = 0.02
    loss_margin: float = 0.01

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `change(Recipe(), ...)` reads them back."""
        return dataclasses.asdict(self) | {"tasks": list(self.tasks)}

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("window", 4), ("batch", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.cut not in CUTS:
            raise BadInput(f"unknown cut {self.cut!r}; known: {', '.join(CUTS)}")
        if not (0 < self.margin < 1 and self.loss_margin > 0):
            raise BadInput("a margin must lie above 0, and that of a score below 1")
        if self.limit is not None and self.limit < 1:
            raise BadInput(f"limit is {self.limit}; it must be at least 1")
        if self.fewshot is not None and self.fewshot < 0:
            raise BadInput(f"fewshot is {self.fewshot}; it must be at least 0")


OWN_TASKS = ("tricksmith_order", "tricksmith_copy", "tricksmith_retrieval", "tricksmith_arithmetic")
RECIPES = {
    "quick": Recipe(),
    "standard": Recipe("standard", tokens=16384, window=1024, tasks=(*OWN_TASKS, "tricksmith_text")),
    "full": Recipe(
        "full",
        tokens=262144,
        window=2048,
        text="wikitext-2",
        tasks=(
            *OWN_TASKS,
            "tricksmith_text",
            "arc_challenge",
            "hellaswag",
            "lambada_openai",
            "piqa",
            "winogrande",
            "gsm8k",
        ),
    ),
}


ABOUT = {
    "quick": "perplexity, logits and greedy generation on 4,096 tokens: minutes on a CPU",
    "standard": "four times the text, and five tasks that need no network: what a careful publisher wants",
    "full": "WikiText-2, and the usual benchmarks beside: hours, and data from the Hub",
}
"""What each recipe is for, in one line."""


def load_recipe(name: str) -> Recipe:
    """`quick`, `standard`, `full`, or a YAML file whose entries are the fields of `Recipe`.

    An entry `base` names the recipe that the file changes; without it that is `quick`.

    Raises:
        BadInput: no such recipe, or a file that is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"no recipe {name!r}; known: {', '.join(RECIPES)}, or give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name} cannot be read as text ({error}); give a YAML file") from error
    return parse_recipe(text, path.stem)


def parse_recipe(text: str, name: str = "own") -> Recipe:
    """The recipe that the content of a YAML file describes (see `load_recipe`).

    Raises:
        BadInput: it describes none.
    """
    try:
        _check_plain(text, name)
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of a thousand digits, say
        line = " ".join(str(error).split())[:200]
        raise BadInput(f"the recipe {name} cannot be read as YAML ({line}); mend it") from error
    if isinstance(entries, str) and len(text.splitlines()) == 1:
        known = ", ".join(RECIPES)
        raise BadInput(f"no recipe {entries[:50]!r}; known: {known}, or write lines like `tokens: 8192`")
    if not isinstance(entries, dict):
        raise BadInput(f"{name} is no recipe; write lines like `tokens: 8192`")
    base = RECIPES.get(str(entries.pop("base", "quick")))
    if base is None:
        raise BadInput(f"the recipe {name} has an unknown base; known: {', '.join(RECIPES)}")
    return change(dataclasses.replace(base, name=name), entries)


def _check_plain(text: str, name: str) -> None:
    """Refuse YAML of a few lines that takes hours: aliases of aliases, brackets in brackets."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"the recipe {name} has YAML aliases (*name); write each value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise BadInput(f"the recipe {name} is nested; write lines like `tokens: 8192`")


def reaching(recipe: Recipe, exact: int) -> Recipe:
    """`recipe` with windows of at least twice the `exact` tokens that a lossy trick leaves as they are.

    In shorter ones nothing that it changes would be seen.
    """
    if not exact:
        return recipe
    window = max(recipe.window, 2 * exact)
    return dataclasses.replace(recipe, window=window, tokens=max(recipe.tokens, 2 * window))


def change(recipe: Recipe, entries: dict[str, Any]) -> Recipe:
    """The recipe with some entries changed; None leaves one as it is.

    Raises:
        BadInput: an entry that there is not, or of the wrong type.
    """
    known = {f.name: f.type for f in dataclasses.fields(Recipe)}
    given = {key: value for key, value in entries.items() if value is not None}
    for key, value in given.items():
        if key not in known:
            raise BadInput(f"a recipe has no entry {key!r}; known: {', '.join(known)}")
        if key == "tasks":
            given[key] = (value,) if isinstance(value, str) else tuple(str(task) for task in value)
        elif not _fits(value, str(known[key])):
            raise BadInput(f"the recipe's {key} is {value!r}; it must be {known[key]}")
    return dataclasses.replace(recipe, **given)


def _fits(value: Any, kind: str) -> bool:
    kinds = {"int": int, "str": str, "bool": bool, "float": (int, float)}
    wanted = kinds[kind.split(" ")[0]]
    return isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
