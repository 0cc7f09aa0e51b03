"""Two models side by side: what is measured, against which noise, and the verdict."""

from evals.compare import compare
from evals.estimate import estimate_for, estimate_seconds
from evals.evidence import Evidence
from evals.harness import check_recipe
from evals.hub_data import HubAway
from evals.memory import MemoryLimit, check_device, parse_memory
from evals.plots import picture
from evals.recipe import ABOUT, RECIPES, Recipe, load_recipe, parse_recipe
from evals.recipe import change as change_recipe
from evals.report import report_page
from evals.verdict import Check, Verdict

__all__ = [
    "ABOUT",
    "RECIPES",
    "Check",
    "Evidence",
    "HubAway",
    "MemoryLimit",
    "Recipe",
    "Verdict",
    "change_recipe",
    "check_device",
    "check_recipe",
    "compare",
    "estimate_for",
    "estimate_seconds",
    "load_recipe",
    "parse_memory",
    "parse_recipe",
    "picture",
    "report_page",
]
