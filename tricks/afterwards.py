"""What a trick leaves for those after it, where that is another model of a class that is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from tricks.checkpoint import WIDTHS, TensorInfo
from tricks.edits import Drop, Edit, Make
from tricks.model import build, read_config, read_wiring
from tricks.subject import Subject


def afterwards(subject: Subject, edits: list[Edit], config: dict[str, Any]) -> Subject:
    """`subject` as `edits` leave it, with nothing of it claimed.

    Args:
        edits: of the kinds Make and Drop.
        config: fields of config.json that change; the model is built anew with them.
    """
    tensors = dict(subject.checkpoint.tensors)
    for edit in edits:
        if isinstance(edit, Drop):
            del tensors[edit.tensor]
        elif isinstance(edit, Make):
            file = tensors[next(iter(edit.inputs.values()))].file
            for new in edit.outputs.values():
                size = WIDTHS[new.dtype] * math.prod(new.shape)
                tensors[new.name] = TensorInfo(new.name, file, new.dtype, new.shape, 0, size)
    left = replace(subject.checkpoint, config={**subject.checkpoint.config, **config}, tensors=tensors)
    blueprint = read_config(left.config, left.name)
    model = build(blueprint, "meta", torch.float32)
    return replace(
        subject,
        model=model,
        wiring=read_wiring(model),
        checkpoint=left,
        config=blueprint.config,
        claims={},
    )
