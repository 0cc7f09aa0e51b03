"""What can be known before any weight is downloaded: does it fit, may it be done, was it done already."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import psutil

from service.converted import converted_by
from service.fetch import existing
from service.headers import read_headers
from service.hub import HubUnavailable
from service.licences import forbids_derivatives
from service.settings import Settings
from service.source import Source, resolve
from tricks import TRICKS, BadInput, Checkpoint, Plan, Trick

WIDE = 4  # bytes per weight in the wider dtype in which two models are compared


@dataclass(frozen=True)
class Preflight:
    """A source and its plan, what the work needs and what is free here (bytes), and what to know before.

    `converted` is a repo that holds this conversion already. `memory` is what the comparison would like to
    have; with less, it goes piece by piece.
    """

    source: Source
    plan: Plan
    download: int
    disk: int
    disk_free: int
    memory: int
    memory_free: int
    converted: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the plan is told apart."""
        source = {
            name: getattr(self.source, name) for name in ("model", "commit", "licence", "gated", "private")
        }
        return {
            "source": source,
            "bytes": {
                "download": self.download,
                "disk": {"needed": self.disk, "free": self.disk_free},
                "memory": {"needed": self.memory, "free": self.memory_free},
            },
            "converted": self.converted,
            "warnings": list(self.warnings),
        }


def preflight(
    model: str, recipe: Sequence[Trick], settings: Settings, token: str | bool | None = None
) -> Preflight:
    """Look at `model` from its metadata and headers alone, for a service of these `settings`.

    Without a recipe every trick is looked at by itself.

    Raises:
        BadInput: it cannot be converted at all: missing, gated without access, disabled, unsafe, no plan.
    """
    from tricks import make_plan, overview  # late: they bring torch

    source = resolve(model, token)
    checkpoint = read_headers(source, token)
    plan = make_plan(checkpoint, recipe) if recipe else overview(checkpoint, [Trick(name) for name in TRICKS])
    warnings = _warnings(source)
    try:
        converted = converted_by(source, [str(trick) for trick in recipe], token=token) if recipe else None
    except HubUnavailable as error:
        converted = None
        warnings.append(f"whether somebody converted it already is not known: {error}")
    local = source.folder is not None
    disk = source.size_bytes * (1 if local else 2)
    disk_free = shutil.disk_usage(existing(settings.work)).free
    memory, memory_free = WIDE * _weights(checkpoint), psutil.virtual_memory().available
    if settings.memory:  # in a container, the machine's own figure says more than there is
        memory_free = min(memory_free, settings.memory)
    try:
        settings.limits.check_model(source.model, source.size_bytes)
    except BadInput as error:
        warnings.append(str(error))
    if converted is not None:
        warnings.append(f"{converted} is this conversion already")
    if disk > disk_free:
        warnings.append(f"it needs {disk / 1e9:.2f} GB of disk, and {disk_free / 1e9:.2f} GB are free here")
    if memory > memory_free:
        warnings.append(
            f"the comparison would like {memory / 1e9:.2f} GB of memory, and {memory_free / 1e9:.2f} GB are"
            " free here: it goes piece by piece, which takes longer"
        )
    return Preflight(
        source=source,
        plan=plan,
        download=0 if local else source.size_bytes,
        disk=disk,
        disk_free=disk_free,
        memory=memory,
        memory_free=memory_free,
        converted=converted,
        warnings=tuple(warnings),
    )


def _warnings(source: Source) -> list[str]:
    """What speaks against publishing, though a person may know better."""
    warnings = []
    if (licence := forbids_derivatives(source)) is not None:
        warnings.append(f"its licence ({licence}) forbids derivatives: publish only with its owner's leave")
    if source.licence is None:
        warnings.append("it states no licence: ask its owner before publishing")
    if source.gated:
        warnings.append("it is gated: its public conversion will be gated too")
    if source.private:
        warnings.append("it is private: its conversion goes to a private repo or a folder only")
    return warnings


def _weights(checkpoint: Checkpoint) -> int:
    return sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
