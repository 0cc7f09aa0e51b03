"""The operation that fills a precomputed first layer's table, a few tokens at a time.

The model's own modelling code computes it: the class is built without weights, the parameters that matter are
read from the checkpoint, and each chunk of the vocabulary is run as a batch of sequences of one token, up to
the last projection that the table holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tricks.errors import BadInput
from tricks.float64 import float64_arithmetic
from tricks.model import build, read_config
from tricks.operations import Result, Value, operation, whole
from tricks.quiet import quiet

CHUNK = 256
"""Tokens in memory at a time."""


class _Enough(Exception):
    """All that the table holds has been computed."""


@operation("precompute.table")
def table(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """The table [vocabulary, width], by rows.

    Args:
        inputs: `embedding` [vocabulary, d], and the parameters of the first layer by their names in the
            model.
        options: `config` (of the source); `embedding`, `pieces`, `baked` and `zero` as the planner found
            them: `baked` lists {path, piece, offset} of modules whose output stands in place of their input
            in a piece.
    """

    def rows() -> Iterator[torch.Tensor]:
        model = _load(inputs, options)
        values = inputs["embedding"]
        for first in range(0, values.shape[0], CHUNK):
            last = min(first + CHUNK, values.shape[0])
            yield _rows(model, values.rows(first, last), first, options)

    return {"table": rows}


def _load(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Any:
    """The model with the parameters in `inputs`; all others are zeros that take no memory."""
    model: Any = build(read_config(dict(options["config"]), "the source"), "meta", torch.float64)
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            full = f"{path}.{name}" if path else name
            shape = getattr(module, name).shape
            values = whole(inputs[full]) if full in inputs else torch.zeros(()).double().expand(shape)
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
        own = dict(module.named_buffers(recurse=False))
        for name, buffer in own.items():
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        if own:
            with torch.no_grad():
                _fill_buffers(model, module)
    model.get_submodule(options["embedding"]).padding_idx = None
    return model


def _fill_buffers(model: Any, module: nn.Module) -> None:
    """Compute buffers that are not stored, as transformers does when it loads a model."""
    kept = dict(module.named_parameters(recurse=False))
    for name, p in kept.items():  # its initialisation would write into them
        module._parameters[name] = nn.Parameter(torch.empty_like(p, device="meta"))
    model._init_weights(module)
    module._parameters.update(kept)


def _rows(model: Any, embedded: torch.Tensor, first: int, options: Mapping[str, Any]) -> torch.Tensor:
    """Rows of the table for the tokens from `first` on, whose embedding is `embedded` [tokens, d]."""
    pieces = [piece["path"] for piece in options["pieces"]]
    wanted = {*pieces, *(entry["path"] for entry in options["baked"])}
    if options["zero"]:
        wanted.add(options["zero"])
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            found[path] = out.flatten(1)
            if wanted <= found.keys():
                raise _Enough

        return hook

    table = model.get_submodule(options["embedding"])
    table.weight = nn.Parameter(embedded, requires_grad=False)
    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in wanted]
    handles.append(table.register_forward_pre_hook(lambda module, args: (args[0] - first, *args[1:])))
    if options["zero"]:
        handles.append(table.register_forward_hook(lambda module, args, out: found.update(x=out.flatten(1))))
    try:
        with torch.no_grad(), float64_arithmetic(), quiet():
            model(input_ids=torch.arange(first, first + len(embedded)).unsqueeze(1), use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for entry in options["baked"]:
        value = found[entry["path"]]
        piece = found[entry["piece"]] = found[entry["piece"]].clone()
        piece[:, entry["offset"] : entry["offset"] + value.shape[1]] = value
    x = found["x"] + found[options["zero"]] if options["zero"] else embedded
    result = torch.cat([x, *(found[path] for path in pieces)], -1)
    if not torch.isfinite(result).all() and torch.isfinite(embedded).all():
        raise BadInput(
            "the first layer gives NaN or Inf for a token, so the model is broken; repair it first"
        )
    return result


@operation("precompute.copy")
def copy(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """The embedding as it was, for an output layer that shared it."""

    def rows() -> Iterator[torch.Tensor]:
        value = inputs["value"]
        for first in range(0, value.shape[0], CHUNK):
            yield value.rows(first, min(first + CHUNK, value.shape[0]))

    return {"copy": rows}
