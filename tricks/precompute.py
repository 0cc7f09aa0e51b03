"""Precompute: what the first layer says of a token before position enters becomes a row of a table.

Source: Graef, "Transformer tricks: Precomputing the first layer" (arXiv:2402.13388). Serial blocks keep
[x | q | k | v] for each token id, parallel ones [x + FFN | q | k | v]. Which modules that concerns is found
by trying (see `first_layer`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn

from tricks import tabulate  # noqa: F401 - registers its operations
from tricks.checkpoint import WIDTHS, Checkpoint, TensorInfo
from tricks.edits import Drop, Edit, Make, New
from tricks.errors import BadInput
from tricks.families import auto_class
from tricks.first_layer import Baked, FirstLayer, Unfit, first_layer
from tricks.layout import FLOATS, stored_whole
from tricks.place import Place
from tricks.recipe import Trick
from tricks.specimen import NoSpecimen, specimen
from tricks.subject import Draft, Subject
from tricks.token_only import observe

NAME = "precompute"
BATCHES = (1, 16, 256, 1024)


def plan_precompute(subject: Subject, trick: Trick) -> Draft:
    """Plan the table of a model's first layer.

    Raises:
        BadInput: the embedding in the checkpoint has another shape than the config says.
    """
    try:
        return _plan(subject)
    except (Unfit, NoSpecimen) as reason:
        return Draft([Place(NAME, _name_of(subject.model, "embedding"), False, str(reason))])


def _plan(subject: Subject) -> Draft:
    model, checkpoint = subject.model, subject.checkpoint
    if auto_class(type(model).__name__) != "AutoModelForCausalLM":
        raise Unfit("it is no plain causal language model: its first layer reads more than token ids")
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise Unfit("its token embedding is no plain table of rows")
    where, head = _name_of(model, "embedding"), _name_of(model, "head")
    if taken := subject.claimed(where):
        raise Unfit(f"its token embedding belongs to {taken}")
    small = specimen(subject)
    layer = _scaled(first_layer(small, where), small, model)
    gone = {name for path in layer.gone for name in _parameters(model, path)}
    names = _stored(subject, f"{where}.weight", {*gone, *_on_the_way(small, where, model)})
    embedded = names.pop(f"{where}.weight")
    stored = checkpoint.tensors[embedded]
    vocabulary, size = stored.shape
    width = size + sum(layer.pieces.values())
    tied = model.get_output_embeddings().weight is embedding.weight  # type: ignore[operator]

    pieces = [{"path": path, "width": count} for path, count in layer.pieces.items()]
    options = {
        "config": checkpoint.config,
        "embedding": where,
        "pieces": pieces,
        "baked": [{"path": b.path, "piece": b.piece, "offset": b.offset} for b in layer.baked],
        "zero": layer.zero,
    }
    new = New(embedded.removesuffix("weight") + "table", stored.dtype, (vocabulary, width))
    edits: list[Edit] = [
        Make("precompute.table", {"embedding": embedded, **names}, {"table": new}, options),
        *_head_edits(checkpoint, f"{head}.weight", stored, tied, layer),
        *(Drop(name) for name in sorted({embedded, *(names[name] for name in gone)})),
    ]
    config: dict[str, Any] = {
        "tricksmith": {
            NAME: {
                "embedding": where,
                "pieces": pieces,
                "identities": [*layer.dropped, *(baked.path for baked in layer.baked)],
                "zero": layer.zero,
                "head": head if tied and not layer.zero else None,
            }
        }
    }
    if tied:
        config["tie_word_embeddings"] = False
    eliminated = sum(prod(checkpoint.tensors[names[name]].shape) for name in gone)
    extra = vocabulary * size if tied and layer.zero else 0
    return Draft(
        places=list(_places(layer)),
        edits=edits,
        savings=savings(vocabulary, size, width, eliminated, WIDTHS[stored.dtype], extra),
        config=config,
        parts=(NAME,),
        stock_loads=False,
        claims=dict.fromkeys(layer.gone, NAME),
    )


def _places(layer: FirstLayer) -> Iterator[Place]:
    for path in layer.pieces:
        yield Place(NAME, path, True, "looked up by token id")
    if layer.zero:
        yield Place(NAME, layer.zero, True, "joins the embedding in the table")
    for path in layer.dropped:
        yield Place(NAME, path, True, "no longer needed: all that read it is looked up")
    for baked in layer.baked:
        yield Place(NAME, baked.path, True, f"baked into {baked.piece}")


def _head_edits(
    checkpoint: Checkpoint, head: str, stored: TensorInfo, tied: bool, layer: FirstLayer
) -> Iterator[Edit]:
    """An output layer that shared the embedding reads its columns of the table, or keeps the embedding where
    those columns hold more."""
    if tied and layer.zero:
        kept = New(head, stored.dtype, stored.shape)
        yield Make("precompute.copy", {"value": stored.name}, {"copy": kept})
    elif tied and head in checkpoint.tensors:
        yield Drop(head)


def _stored(subject: Subject, embedding: str, needed: set[str]) -> dict[str, str]:
    """Parameter -> checkpoint tensor, for the embedding and all parameters in `needed`."""
    model, checkpoint = subject.model, subject.checkpoint
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    result: dict[str, str] = {}
    for name, tensor in stored_whole(model, checkpoint, [embedding, *sorted(needed)]).items():
        if tensor is None:
            raise Unfit(f"{name} is not in the checkpoint as one tensor of its own")
        found = checkpoint.tensors[tensor]
        if found.dtype not in FLOATS:
            raise Unfit(f"{tensor} is stored as {found.dtype}, with which nothing can be computed")
        if found.shape != shapes[name]:
            advice = "config.json and the weights belong to different models"
            if name == embedding:
                advice = "a padded vocabulary must be named in config.json (vocab_size)"
            raise BadInput(
                f"{checkpoint.name}: {tensor} is {list(found.shape)} where the config says "
                f"{list(shapes[name])}; {advice}"
            )
        result[name] = tensor
    return result


def savings(
    vocabulary: int, size: int, width: int, eliminated: int, element: int, extra: int = 0
) -> dict[str, int | float]:
    """What a table buys: elements read for the first layer's precomputed part, per batch size, and bytes.

    Source: the paper's section 3. Before, a step reads each token's embedding and the weights once for the
    whole batch; after, each token's row of the table.

    Args:
        vocabulary: rows.
        size: the embedding's width.
        width: the table's width.
        eliminated: elements of the weights that are no longer needed.
        element: bytes of one element.
        extra: elements stored besides the table.
    """
    result: dict[str, int | float] = {}
    for batch in BATCHES:
        result[f"first_layer_reads_before_batch_{batch}"] = batch * size + eliminated
        result[f"first_layer_reads_after_batch_{batch}"] = batch * width
    result["weight_bytes_saved"] = (eliminated - vocabulary * (width - size) - extra) * element
    return result


def _scaled(layer: FirstLayer, small: nn.Module, model: nn.Module) -> FirstLayer:
    """`layer` with the widths and offsets of `model`."""
    pieces = {path: _full(width, small, model, path) for path, width in layer.pieces.items()}
    baked = []
    for one in layer.baked:
        grown = one.offset * pieces[one.piece] / layer.pieces[one.piece]
        baked.append(Baked(one.path, one.piece, int(grown)))
    return FirstLayer(pieces, layer.dropped, tuple(baked), layer.zero)


def _full(width: int, small: nn.Module, model: nn.Module, path: str) -> int:
    before, after = small.get_submodule(path), model.get_submodule(path)
    sizes = [ends.get_input_embeddings().embedding_dim for ends in (small, model)]  # type: ignore[operator]
    if list(before.children()) and width == sizes[0]:
        return int(sizes[1])  # a feed-forward: as wide as the stream
    weight = getattr(before, "weight", None)
    if list(before.children()) or not isinstance(weight, torch.Tensor) or width not in weight.shape:
        raise Unfit(f"{path} is no linear layer")
    # A linear layer's outputs come first, but for Conv1D's, which come last.
    axis = 1 if weight.shape[0] != width or type(before).__name__ == "Conv1D" else 0
    grown = after.weight
    assert isinstance(grown, torch.Tensor)
    return grown.shape[axis]


def _on_the_way(small: nn.Module, embedding: str, model: nn.Module) -> set[str]:
    """Parameters of all modules that depend on the token alone, but for the embedding."""
    paths = [path for path in observe(small).token_only if path != embedding and "." in path]
    tree = [path for path in paths if not list(small.get_submodule(path).children())]
    return {name for path in tree for name in _parameters(model, path)}


def _parameters(model: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()]


def _name_of(model: nn.Module, which: str) -> str:
    """The path of the token embedding or the output layer."""
    ends: Any = model
    wanted = ends.get_input_embeddings() if which == "embedding" else ends.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is wanted), which)
