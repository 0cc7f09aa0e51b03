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
    """A model to plan for: its class on the meta device, its wiring, and its checkpoint's headers."""

    model: nn.Module
    wiring: Wiring
    checkpoint: Checkpoint
    config: PretrainedConfig


@dataclass
class Draft:
    """One trick's part of a plan; see `Plan` for the fields."""

    places: list[Place] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    savings: dict[str, int | float] = field(default_factory=dict)
    lossless: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    stock_loads: bool = True
