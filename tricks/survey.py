"""Every trick looked at on its own: where it would fit, and where not, before anybody has chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tricks.checkpoint import Checkpoint
from tricks.draft import draft_on, subject_of
from tricks.errors import TricksmithError
from tricks.plan import Plan
from tricks.recipe import Trick
from tricks.sketch import Part, sketch


@dataclass(frozen=True)
class Look:
    """What came of one trick: its plan, not proven yet, or the reason why there is none."""

    trick: Trick
    plan: Plan | None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the trick changes anything in this model."""
        return self.plan is not None and self.plan.fits


def survey(checkpoint: Checkpoint, tricks: Sequence[Trick]) -> tuple[tuple[Part, ...], list[Look]]:
    """What the model is made of, and each of `tricks` looked at on its own.

    The wiring is read once, and nothing is proven: seconds, not minutes.

    Raises:
        BadInput: the model cannot be planned at all.
    """
    subject = subject_of(checkpoint)
    looks = []
    for trick in tricks:
        try:
            looks.append(Look(trick, draft_on(subject, [trick])))
        except TricksmithError as error:
            looks.append(Look(trick, None, str(error)))
    return sketch(subject), looks
