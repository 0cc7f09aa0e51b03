"""What a trick is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from tricks.checkpoint import Checkpoint
from tricks.edits import Edit
from tricks.place import Place
from tricks.wiring import Wiring


@dataclass(frozen=True)
class Subject:
    """A model to plan for: its class on the meta device, its wiring, and its checkpoint's headers.

    `architecture` is the name of its class in transformers.
    `unloaded` names tensors of the checkpoint that transformers does not load: heads for drafting, say.
    `claims` maps the path of each module that an earlier trick of the recipe takes for itself to that trick.
    """

    model: nn.Module
    wiring: Wiring
    checkpoint: Checkpoint
    config: PretrainedConfig
    unloaded: tuple[str, ...] = ()
    architecture: str = ""
    claims: dict[str, str] = field(default_factory=dict)

    def claimed(self, path: str) -> str | None:
        """The trick that took the module `path`, or one around it, if any did."""
        parts = path.split(".")
        stems = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.claims[stem] for stem in stems if stem in self.claims), None)


@dataclass
class Draft:
    """One trick's part of a plan; see `Plan` for the fields, and `Subject` for `claims`.

    `leaves` is what later tricks of the recipe are asked about, where it is another model than before.
    """

    places: list[Place] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    savings: dict[str, int | float] = field(default_factory=dict)
    lossless: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    stock_loads: bool = True
    claims: dict[str, str] = field(default_factory=dict)
    leaves: Subject | None = None
