"""What `tricksmith verify` and `submit` are asked to measure: recipe, budget, limits; and the report page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.api import Service
from service.evidence_request import EvidenceRequest
from tricks import BadInput
from ui.progress import note
from ui.text import one_line


def evidence_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `Service.verify` that the command line asks for.

    Raises:
        BadInput: an unknown recipe, or a value that makes no sense.
    """
    # evals brings torch, which the other commands do not need.
    from evals import change_recipe, check_device, load_recipe, parse_memory

    if args.report and not Path(args.report).absolute().parent.is_dir():
        raise BadInput(f"{args.report}: there is no such folder to write the report in; make it first")
    named = ("text", "tokens", "window", "cut", "limit", "fewshot", "chat_template", "batch", "margin")
    return {
        "recipe": change_recipe(load_recipe(args.recipe), {name: getattr(args, name) for name in named}),
        "budget": _budget(args.budget) if args.budget else None,
        "device": None if args.device is None else check_device(args.device),
        "memory": None if args.max_memory is None else parse_memory(args.max_memory),
    }


def evidence_request(args: argparse.Namespace) -> EvidenceRequest:
    """What a job shall measure, files of this machine included.

    Raises:
        BadInput: the recipe is neither known nor a file that can be read.
    """
    recipe = args.recipe
    if recipe not in Service.recipes():
        if not Path(recipe).is_file():
            raise BadInput(
                f"no recipe {recipe!r}; known: {', '.join(Service.recipes())}, or give a YAML file"
            )
        try:
            recipe = Path(recipe).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{args.recipe} cannot be read as text ({error}); give a YAML file") from error
    return EvidenceRequest(recipe, tuple(args.task), args.text, args.max_memory, files=True)


def _budget(entries: list[str]) -> dict[str, float]:
    budget = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            budget[name.strip()] = float(value)
        except ValueError:
            raise BadInput(f"{entry!r} is no budget; write kl=0.01, top1=0.99 or perplexity=0.02") from None
    return budget


def write_report(evidence: Any, file: Path, source: str, converted: str) -> None:
    """Write the report page and say where it is."""
    from evals import report_page

    file.write_text(report_page(evidence, f"{source} → {converted}"), encoding="utf-8")
    note(f"report: {one_line(str(file))}")
