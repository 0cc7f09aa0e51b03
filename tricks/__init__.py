"""Weight algebra: how a model is wired, which trick fits where, and the streaming conversion."""

from tricks.checkpoint import Checkpoint, TensorInfo, checkpoint_from_headers, read_checkpoint
from tricks.companions import companions, files_of
from tricks.convert import Conversion, convert
from tricks.errors import BadInput, Cancelled, TricksmithError
from tricks.place import Place
from tricks.plan import Plan
from tricks.planning import make_plan
from tricks.progress import Report, silent
from tricks.recipe import TRICKS, Trick, parse_trick, stated_budget
from tricks.sketch import Part
from tricks.survey import Look, overview, survey

__all__ = [
    "TRICKS",
    "BadInput",
    "Cancelled",
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
    "checkpoint_from_headers",
    "companions",
    "convert",
    "files_of",
    "make_plan",
    "overview",
    "parse_trick",
    "read_checkpoint",
    "silent",
    "stated_budget",
    "survey",
]
