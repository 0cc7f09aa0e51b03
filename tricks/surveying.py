"""Every trick looked at on its own: where it would fit, and where not, before anybody has chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tricks.checkpoint import Checkpoint
from tricks.draft import draft_on, subject_of
from tricks.errors import TricksmithError
from tricks.place import Place
from tricks.plan import Plan
from tricks.proof import prove
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


def overview(checkpoint: Checkpoint, tricks: Sequence[Trick]) -> Plan:
    """Each of `tricks` planned and proven on its own, as one plan that cannot be carried out.

    The figures carry their trick's name in front; the proof is the largest of all.

    Raises:
        BadInput: the model cannot be planned at all.
    """
    looks = [_proven(look, checkpoint) for look in survey(checkpoint, tricks)[1]]
    plans = [look.plan for look in looks if look.plan]
    places = [
        place
        for look in looks
        for place in (
            look.plan.places if look.plan else (Place(look.trick.name, "model", False, look.reason or ""),)
        )
    ]
    return Plan(
        model=checkpoint.name,
        architecture=next((plan.architecture for plan in plans), ""),
        tricks=tuple(tricks),
        places=tuple(places),
        savings={
            f"{plan.tricks[0].name}_{name}": figure for plan in plans for name, figure in plan.savings.items()
        },
        proof=max((plan.proof for plan in plans if plan.proof is not None), default=None),
        lossless=all(plan.lossless for plan in plans),
    )


def _proven(look: Look, checkpoint: Checkpoint) -> Look:
    if look.plan is None or not look.plan.fits:
        return look
    try:
        return Look(look.trick, prove(look.plan, checkpoint.config))
    except TricksmithError as error:
        return Look(look.trick, None, str(error))
