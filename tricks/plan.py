"""A plan: which tensors a recipe changes and how, and for each place that does not fit, why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tricks.edits import Edit, edit_from_json, edit_to_json
from tricks.place import Place
from tricks.recipe import Trick, parse_trick


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. JSON in and out, so that it can cross process borders.

    `savings` holds counts that follow from the shapes; `proof` is the largest relative difference of the
    logits when this plan was carried out, in float64, on a small random model of the same class. `config` is
    merged into `config.json`; `parts` names the shipped modelling code that the result needs, and
    `stock_loads` says whether the source's own class, too, loads the result rightly.
    """

    model: str
    architecture: str
    tricks: tuple[Trick, ...]
    places: tuple[Place, ...]
    edits: tuple[Edit, ...] = ()
    savings: dict[str, int | float] = field(default_factory=dict)
    proof: float | None = None
    lossless: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    stock_loads: bool = True

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
            "config": self.config,
            "parts": list(self.parts),
            "stock_loads": self.stock_loads,
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
            config=dict(data["config"]),
            parts=tuple(data["parts"]),
            stock_loads=data["stock_loads"],
        )
