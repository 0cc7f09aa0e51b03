"""The first layer's projections looked up instead of computed.

Before position enters, everything in the first layer depends on the token id alone. Row i of the table
[vocabulary, width] holds, for token i, what its columns say: x (the embedding, or the embedding plus the
feed-forward output where the block is parallel) and then the output of each projection in `pieces`.

Source: Graef, "Transformer tricks: Precomputing the first layer" (arXiv:2402.13388), figures 1 and 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def install(model: nn.Module, options: dict[str, Any]) -> None:
    """Exchange the embedding, the first layer's projections and the norm before them.

    `options`: `embedding` (module path), `pieces` (list of {path, width} in the table's order), `identities`
    (paths of modules whose work is in the table already), `zero` (path of a module whose output is in x, or
    None) and `head` (path of an output layer that shares the embedding's columns, or None).
    """
    embedding = model.get_submodule(options["embedding"])
    names = [piece["path"] for piece in options["pieces"]]
    widths = [piece["width"] for piece in options["pieces"]]
    _tabulate(embedding, names, widths)
    for name in names:
        _exchange(model, name, Looked(embedding, name))
    for name in options["identities"]:
        _exchange(model, name, Unchanged(embedding))
    if options["zero"]:
        _exchange(model, options["zero"], Zero(embedding))
    if options["head"]:
        _share(model.get_submodule(options["head"]), embedding)
    model.register_forward_pre_hook(_refuse_embeddings, with_kwargs=True)


def _tabulate(embedding: Any, names: list[str], widths: list[int]) -> None:
    """Let `embedding` hold the table, its own weight being a view of the first columns."""
    stock: Any = type(embedding)
    old = embedding.weight
    rows, size = old.shape

    class Table(stock):  # type: ignore[misc]
        @property
        def weight(self) -> torch.Tensor:
            view: Any = self.table[:, :size]
            view._is_hf_initialized = True  # it is the table that is loaded, not the view
            return view  # type: ignore[no-any-return]

        def forward(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found = nn.functional.embedding(input_ids, self.table[:, size:])
            self.looked_up = dict(zip(names, found.split(widths, -1), strict=True))
            return super().forward(input_ids, *args, **kwargs)

    table = torch.empty(
        rows, size + sum(widths), dtype=embedding.weight.dtype, device=embedding.weight.device
    )
    del embedding.weight
    embedding.__class__ = Table
    embedding.table = nn.Parameter(table)
    embedding.looked_up = {}


class Part(nn.Module):
    """Stands where a module was; `weight` is there for code that asks it for dtype and device."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list, so that it is no submodule a second time

    @property
    def weight(self) -> Any:
        return self._embedding[0].table


class Looked(Part):
    """Gives what the table says of the tokens that were just embedded."""

    def __init__(self, embedding: Any, name: str) -> None:
        super().__init__(embedding)
        self._name = name

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._embedding[0].looked_up.pop(self._name)


class Unchanged(Part):
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return x


class Zero(Part):
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros_like(x)


def _share(head: Any, embedding: Any) -> None:
    """Let the output layer read the embedding's columns of the table."""
    stock: Any = type(head)
    source = [embedding]

    class Shared(stock):  # type: ignore[misc]
        @property
        def weight(self) -> Any:
            return source[0].weight

    del head.weight
    head.__class__ = Shared


def _exchange(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _refuse_embeddings(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError(
            "this model looks its first layer up by token id, so it cannot take inputs_embeds; "
            "give input_ids, or use the model it was converted from"
        )
