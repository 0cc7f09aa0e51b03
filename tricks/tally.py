"""A checkpoint held against its config: every tensor that the model asks for is there, in its shape."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tricks.checkpoint import Checkpoint
from tricks.errors import BadInput
from tricks.layout import key_of, saved_shapes

_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias|num_batches_tracked)$"
)
"""Values that older versions stored and every version computes."""


def check_tensors(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The checkpoint's tensors that transformers would not load into `model`.

    Args:
        model: on the meta device.

    Raises:
        BadInput: a tensor is missing (transformers would fill it with random numbers) or has another shape.
    """
    stock: Any = model
    tied = set(getattr(stock, "all_tied_weights_keys", {}))
    try:
        saved = saved_shapes(model)
    except Exception:  # noqa: BLE001 - transformers cannot save this model; the tricks will say so in their words
        return ()
    prefix = stock.base_model_prefix
    ignored = [re.compile(pattern) for pattern in stock._keys_to_ignore_on_load_missing or ()]
    seen = set()
    for name, shape in saved.items():
        key = key_of(name, prefix, checkpoint)
        if key is None:
            if any(pattern.search(name) for pattern in ignored):
                continue
            raise BadInput(
                f"{checkpoint.name} has no tensor {name}, which config.json calls for; they belong "
                "to different models, or the download is incomplete"
            )
        seen.add(key)
        stored = checkpoint.tensors[key].shape
        if stored != tuple(shape):
            raise BadInput(
                f"{checkpoint.name}: {key} has the shape {list(stored)} where config.json calls for "
                f"{list(shape)}; they belong to different models"
            )
    seen |= {key for name in tied if (key := key_of(name, prefix, checkpoint)) is not None}
    buffers = {name for name, _ in model.named_buffers()}
    return tuple(
        name
        for name in sorted(checkpoint.tensors.keys() - seen)
        if not _BUFFERS.search(name) and not {name, f"{prefix}.{name}"} & buffers
    )
