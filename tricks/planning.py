"""From a checkpoint's headers and a recipe to a plan that has proved itself."""

from __future__ import annotations

from collections.abc import Sequence

from tricks.checkpoint import Checkpoint
from tricks.draft import draft_on, subject_of
from tricks.errors import BadInput
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.proof import prove
from tricks.recipe import Trick


def make_plan(checkpoint: Checkpoint, tricks: Sequence[Trick], report: Report = silent) -> Plan:
    """Plan `tricks` for a checkpoint from its config and headers alone, and prove the plan.

    Raises:
        BadInput: no tricks, a trick twice, a model that cannot be planned (see `model.read_config`), or a
            plan that failed its own proof.
    """
    if not tricks:
        raise BadInput("no trick was asked for; add one, for example --trick flashnorm")
    if len({trick.name for trick in tricks}) != len(tricks):
        raise BadInput("a trick is named twice; name each trick once")
    report("steps", 0, 2)
    plan = draft_on(subject_of(checkpoint), tricks)
    report("steps", 1, 2)
    if plan.fits:
        plan = prove(plan, checkpoint.config)
    report("steps", 2, 2)
    return plan
