"""A plan: which tensors a recipe changes and how, and for each place that does not fit, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tricks.checkpoint import Checkpoint
from tricks.edits import Edit, edit_from_json, edit_to_json
from tricks.errors import BadInput
from tricks.flashnorm import plan_flashnorm
from tricks.model import build, read_config, read_wiring
from tricks.place import Place
from tricks.progress import Report, silent
from tricks.recipe import Trick, parse_trick


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. JSON in and out, so that it can cross process borders.

    `savings` holds counts that follow from the shapes; `proof` is the largest relative difference of the
    logits when this plan was carried out, in float64, on a small random model of the same class.
    """

    model: str
    architecture: str
    tricks: tuple[Trick, ...]
    places: tuple[Place, ...]
    edits: tuple[Edit, ...] = ()
    savings: dict[str, int | float] = field(default_factory=dict)
    proof: float | None = None
    lossless: bool = True

    @property
    def fits(self) -> bool:
        """Whether there is anything to convert."""
        return any(place.fits for place in self.places)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "tricks": [str(trick) for trick in self.tricks],
            "fits": self.fits,
            "lossless": self.lossless,
            "proof": self.proof,
            "savings": self.savings,
            "places": [asdict(place) for place in self.places],
            "edits": [edit_to_json(edit) for edit in self.edits],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        return Plan(
            model=data["model"],
            architecture=data["architecture"],
            tricks=tuple(parse_trick(text) for text in data["tricks"]),
            places=tuple(Place(**place) for place in data["places"]),
            edits=tuple(edit_from_json(edit) for edit in data["edits"]),
            savings=dict(data["savings"]),
            proof=data["proof"],
            lossless=data["lossless"],
        )


def make_plan(checkpoint: Checkpoint, tricks: Sequence[Trick], report: Report = silent) -> Plan:
    """Plan `tricks` for a checkpoint from its config and headers alone, and prove the plan.

    Raises:
        BadInput: no tricks, a trick twice, a model that cannot be planned (see `model.read_config`), or a
            plan that failed its own proof.
    """
    from tricks.proof import prove

    if not tricks:
        raise BadInput("no trick was asked for; add one, for example --trick flashnorm")
    if len({trick.name for trick in tricks}) != len(tricks):
        raise BadInput("a trick is named twice; name each trick once")
    report("steps", 0, 2)
    plan = draft_plan(checkpoint, tricks)
    report("steps", 1, 2)
    if plan.fits:
        plan = prove(plan, checkpoint.config)
    report("steps", 2, 2)
    return plan


def draft_plan(checkpoint: Checkpoint, tricks: Sequence[Trick]) -> Plan:
    """A plan without its proof."""
    config = read_config(checkpoint.config, checkpoint.name)
    model = build(config, "meta", torch.float32)
    wiring = read_wiring(model)
    fold = plan_flashnorm(model, wiring, checkpoint)
    return Plan(
        model=checkpoint.name,
        architecture=type(model).__name__,
        tricks=tuple(tricks),
        places=tuple(fold.places),
        edits=tuple(fold.edits),
        savings={
            "norms": len(fold.places),
            "norms_folded": sum(place.fits for place in fold.places),
            "gain_elements_folded": fold.gain_elements,
            "weight_bytes_saved": 0,
        },
    )
