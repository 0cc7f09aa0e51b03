"""Weight algebra: how a model is wired, which trick fits where, and the streaming conversion.

What needs torch and transformers is imported when it is first asked for: their import takes seconds, which
neither a list of jobs nor a worker that waits for one should pay.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tricks.checkpoint import Checkpoint, TensorInfo, checkpoint_from_headers, read_checkpoint
from tricks.companions import companions, files_of
from tricks.conversion import Conversion
from tricks.errors import BadInput, Cancelled, TricksmithError
from tricks.place import Place
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.recipe import TRICKS, Trick, exact_tokens, parse_trick, stated_budget

if TYPE_CHECKING:
    from tricks.converting import convert
    from tricks.planning import make_plan
    from tricks.rechecking import CarriedOut, carried_out
    from tricks.ship import expected_config
    from tricks.sketch import Part
    from tricks.surveying import Look, overview, survey
else:
    _LATE = {
        "CarriedOut": "rechecking",
        "Look": "surveying",
        "Part": "sketch",
        "carried_out": "rechecking",
        "convert": "converting",
        "expected_config": "ship",
        "make_plan": "planning",
        "overview": "surveying",
        "survey": "surveying",
    }

    def __getattr__(name):
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"tricks.{_LATE[name]}"), name)
        return found


__all__ = [
    "TRICKS",
    "BadInput",
    "Cancelled",
    "CarriedOut",
    "Checkpoint",
    "Conversion",
    "Look",
    "Part",
    "Place",
    "Plan",
    "Report",
    "TensorInfo",
    "Trick",
    "TricksmithError",
    "carried_out",
    "checkpoint_from_headers",
    "companions",
    "convert",
    "exact_tokens",
    "expected_config",
    "files_of",
    "make_plan",
    "overview",
    "parse_trick",
    "read_checkpoint",
    "silent",
    "stated_budget",
    "survey",
]
