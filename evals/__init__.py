"""Two models side by side: what is measured, against which noise, and the verdict."""

from evals.compare import compare
from evals.evidence import Evidence
from evals.memory import MemoryLimit, parse_memory
from evals.recipe import RECIPES, Recipe, load_recipe
from evals.verdict import Check, Verdict

__all__ = [
    "RECIPES",
    "Check",
    "Evidence",
    "MemoryLimit",
    "Recipe",
    "Verdict",
    "compare",
    "load_recipe",
    "parse_memory",
]
