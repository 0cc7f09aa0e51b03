"""What storing a model's weights once more does to it: the noise that no conversion can avoid.

A conversion that computes a weight exactly and stores it puts an error of at most half a unit in the last
place on it, and nothing else. Doing just that to the source's own weights, at random, shows how far an honest
conversion moves this model, which is far less than what running it in its storage dtype does.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

# Digits behind the binary point, and the exponent under which numbers are no longer normal.
_FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}


@torch.no_grad()
def round_once_more(model: PreTrainedModel, storage: torch.dtype, seed: int = 0) -> None:
    """Move every weight of two or more axes by up to half a unit in the last place of `storage`, at random.

    Embeddings stay: no trick moves a row of them by rounding alone, and a tied head goes with them.
    """
    generators: dict[torch.device, torch.Generator] = {}
    kept = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    for parameter in model.parameters():
        if parameter.ndim < 2 or id(parameter) in kept or not parameter.is_floating_point():
            continue
        generator = generators.setdefault(
            parameter.device, torch.Generator(parameter.device).manual_seed(seed)
        )
        data = parameter.data
        # In pieces: a large matrix is never held twice.
        for row in data.view(-1).split(2**22) if data.is_contiguous() else (data,):
            row.add_(_unit(row, storage).mul_(_uniform(row, generator)))


def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device) - 0.5


def _unit(values: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """The distance between neighbours in `storage` at each value."""
    digits, least = _FORMATS[storage]
    exponent = torch.frexp(values).exponent - 1
    unit = torch.ldexp(torch.ones_like(values), exponent.clamp(min=least) - digits)
    return torch.where(values == 0, 0.0, unit)
