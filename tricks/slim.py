"""Slim attention: K (or V, or the layer's input) and a thin residual are cached instead of K and V.

Source: Graef and Wasielewski, "Slim attention" (arXiv:2503.05840): K-only and V-only caches (section 2),
X-cache (section 3), encoder-decoder cross attention (section 4). The residual is an extension of this
project: with it, the cache holds in 16 bits what the paper's form holds in exact arithmetic only.

The plan says for every attention module what is cached; `slim_settle` then chooses each residual's width and
directions by activations. Which layers make keys and values is found, see `slim_find`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from tricks.checkpoint import Checkpoint
from tricks.edits import Drop, Edit, Make, New
from tricks.errors import BadInput
from tricks.layout import locate
from tricks.place import Place
from tricks.recipe import Trick
from tricks.shipped.slim_rounding import SCALE_BYTES, feedback_size
from tricks.shipped.slim_turns import POSITION_BYTES
from tricks.slim_algebra import OPERATION
from tricks.slim_find import Attention, Slot, find_attention
from tricks.subject import Draft, Subject

NAME = "slim"
STEP = 16
"""Residual widths are multiples of this, or of 8 where the layer is narrower than 512."""
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


class _Left(Exception):
    """Why one attention module stays as it is."""


def plan_slim(subject: Subject, trick: Trick) -> Draft:
    """Plan slim attention for every attention module of a model."""
    draft = Draft()
    try:
        found = find_attention(subject)
    except BadInput as reason:
        draft.places.append(Place(NAME, type(subject.model).__name__, False, str(reason)))
        return draft
    tables = {id_: place for place, id_ in enumerate(dict.fromkeys(a.rope["table"] for a in found if a.rope))}
    marks = {p: (0, 2 * n + s) for n, a in enumerate(found) for s, p in enumerate(_weights(subject, a))}
    stored = locate(subject.model, subject.checkpoint, {p: m for p, m in marks.items() if p})
    before = after = 0.0
    layers = []
    shared = False
    for attention in found:
        width = _width(subject.checkpoint)
        full = _standard_bytes(attention, width)
        before += full
        try:
            spec, edits = _layer(subject, attention, trick, stored, marks, tables)
        except _Left as left:
            draft.places.append(Place(NAME, attention.module, False, str(left)))
            after += full
            continue
        layers.append(spec)
        draft.edits += edits
        cost = layer_bytes(spec, width)
        if spec["mode"] == "e":
            cost, shared = (0 if shared else cost), True
        after += cost
        draft.claims |= {f"{attention.module}.{spec[s + '_linear']}": NAME for s in ("key", "value")}
        draft.places.append(Place(NAME, attention.module, True, describe(spec, full, cost)))
    after += table_bytes(layers, _width(subject.checkpoint))
    draft.savings = {
        "cache_bytes_per_token_before": int(before),
        "cache_bytes_per_token_after": int(after),
        "slim_layers": len(layers),
    }
    if layers:
        draft.config = {"tricksmith": {NAME: {"layers": layers}}}
        draft.parts = (NAME,)
        draft.stock_loads = not draft.edits
        draft.lossless = not any(spec["mode"] in "kv" for spec in layers)
    return draft


def _width(checkpoint: Checkpoint) -> int:
    """Bytes of a cached number: the checkpoint's own float type."""
    floats = [t.dtype for t in checkpoint.tensors.values() if t.dtype in _BYTES and len(t.shape) == 2]
    return _BYTES[max(set(floats), key=floats.count)] if floats else 2


def _standard_bytes(attention: Attention, width: int) -> int:
    return width * (attention.key.channels + attention.value.channels)


def residual_bytes(spec: Mapping[str, Any], width: int) -> int:
    """Bytes of C for a token."""
    if not spec["residual"]:
        return 0
    rank: int = spec["residual"]
    return rank + SCALE_BYTES if spec["bits"] == 8 else rank * width


def layer_bytes(spec: Mapping[str, Any], width: int) -> int:
    """Cache bytes of one layer for a token; `width` bytes for a number."""
    channels: int = spec["cached_channels"]
    cached = channels + SCALE_BYTES if spec["cached_bits"] == 8 else channels * width
    return cached + residual_bytes(spec, width)


def table_bytes(layers: list[dict[str, Any]], width: int) -> int:
    """Bytes for a token of what turns the keys of all layers: its position, or cos and sin where that is not
    enough."""
    tables = {spec["rope"]["table"]: spec["rope"] for spec in layers if spec["rope"]}
    return sum(
        POSITION_BYTES if rope["source"] else int(rope["size"]) * (max(width, 4) if rope["wide"] else width)
        for rope in tables.values()
    )


def describe(spec: Mapping[str, Any], before: int, after: int) -> str:
    """What is done at one place, for the plan."""
    what = {
        "k": "K cached",
        "v": "V cached, K made of it",
        "x": "the layer's input cached, K and V made of it",
        "e": "the encoder's output cached once for all layers",
    }[spec["mode"]]
    if spec["mode"] in "kv":
        bits = " in 8 bits" if spec["cached_bits"] == 8 else ""
        what += f"{bits} with a residual of {spec['residual']}"
    order = "" if spec["interface"] else "; K and V are made anew at each step, for its softmax is its own"
    return f"{what}: {after} of {before} bytes a token{order}"


def _weights(subject: Subject, attention: Attention) -> tuple[str, str]:
    """The weight parameters that make keys and values; "" where the module was refused."""
    if attention.reason is not None:
        return "", ""
    stem = attention.module + "."
    return f"{stem}{attention.key_linear}.weight", f"{stem}{attention.value_linear}.weight"


def _layer(
    subject: Subject,
    attention: Attention,
    trick: Trick,
    stored: Mapping[int, Any],
    marks: Mapping[str, tuple[int, int]],
    tables: Mapping[int, int],
) -> tuple[dict[str, Any], list[Edit]]:
    """The shipped code's specification of one module, and the edits of its weights."""
    if attention.reason is not None:
        raise _Left(attention.reason)
    for linear in (attention.key_linear, attention.value_linear):
        by = subject.claimed(f"{attention.module}.{linear}")
        if by is not None:
            raise _Left(f"{by} changes its {linear}; leave out one of the two tricks")
    module = subject.model.get_submodule(attention.module)
    projection: Any = module.get_submodule(attention.key_linear)
    straight = isinstance(projection, nn.Linear)
    inputs: int = projection.weight.shape[1 if straight else 0]
    mode = _mode(attention, trick, inputs)
    cached = "key" if mode == "k" else "value"
    derived = "value" if mode == "k" else "key"
    slots = {"key": attention.key, "value": attention.value}
    linears = {"key": attention.key_linear, "value": attention.value_linear}
    fused = linears["key"] == linears["value"]
    spec: dict[str, Any] = {
        "module": attention.module,
        "index": attention.index,
        "cross": attention.cross,
        "mode": mode,
        "heads": attention.heads,
        "groups": attention.groups,
        "key_linear": linears["key"],
        "value_linear": linears["value"],
        "key": list(slots["key"]),
        "value": list(slots["value"]),
        "norm": attention.norm,
        "rope": None
        if attention.rope is None
        else {**attention.rope, "table": tables[attention.rope["table"]]},
        "interface": attention.interface,
        "residual": 0,
        "bits": 16,
        "cached_bits": 16,
        "integers": False,
        "feedback": False,
        "cached_channels": inputs,
    }
    if mode in ("x", "e"):
        if trick.option("cache") == "int8":
            raise _Left("cache=int8 is for modes k and v; this layer's smallest cache is that of its input")
        return spec, []
    primary, other = slots[cached], slots[derived]
    axes = [stored.get(marks[p][1]) for p in _weights(subject, attention)]
    if any(axis is None or len(axis) != 1 for axis in axes):
        raise _Left("its projections are not in the checkpoint under names that transformers gives them")
    names = dict(zip(("key", "value"), (axis[0].tensor for axis in axes if axis), strict=True))
    tensor = subject.checkpoint.tensors[names[derived]]
    if tensor.dtype not in _BYTES:
        raise _Left(f"{tensor.name} is stored as {tensor.dtype}, which holds no matrix of slim attention")
    width = _BYTES[tensor.dtype]
    narrow = width == 2
    if trick.option("cache") == "int8" and width == 4:
        raise _Left(f"cache=int8 is fitted to weights in 16 bits, and these are {tensor.dtype}")
    exact_rank = max(inputs - primary.channels, 0)
    spec |= {
        "cached": cached,
        "primary_linear": linears[cached],
        "derived_linear": linears[derived],
        "primary": list(primary),
        "derived": list(other),
        "primary_left": list(_left_over(primary, other)) if fused else list(primary),
        "shape": [other.channels, primary.channels, inputs],
        "cached_channels": primary.channels,
        "integers": narrow,
        "bits": 8 if narrow and not exact_rank else 16,
        "cached_bits": 8 if trick.option("cache") == "int8" else 16,
        "least": exact_rank,
        "absorbs": not (attention.rope or attention.norm or attention.groups > 1 or inputs > other.channels)
        and attention.interface,
    }
    spec["residual"] = _rank(trick, inputs, exact_rank)
    if layer_bytes(spec, width) >= _standard_bytes(attention, width):
        raise _Left(
            f"a residual of {spec['residual']} beside {primary.channels} cached numbers saves nothing of "
            f"{primary.channels + other.channels}"
        )
    return spec, edits_of(spec, names[cached], tensor.name, tensor.dtype, tensor.shape, straight)


def mirrored(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification of mode k as one of mode v: the two sides change places."""
    primary, derived = Slot(*spec["primary"]), Slot(*spec["derived"])
    fused = spec["primary_linear"] == spec["derived_linear"]
    e_out, e_in, inputs = spec["shape"]
    return {
        **spec,
        "mode": "v",
        "cached": "value",
        "primary_linear": spec["derived_linear"],
        "derived_linear": spec["primary_linear"],
        "primary": list(derived),
        "derived": list(primary),
        "primary_left": list(_left_over(derived, primary) if fused else derived),
        "shape": [e_in, e_out, inputs],
        "cached_channels": e_out,
    }


def edits_of(
    spec: Mapping[str, Any],
    primary: str,
    derived: str,
    dtype: str,
    shape: tuple[int, ...],
    straight: bool,
    settled: Mapping[str, Any] | None = None,
) -> list[Edit]:
    """The edits of one layer's weights."""
    fused = primary == derived
    e_out, e_in, inputs = spec["shape"]
    rank = spec["residual"]
    stem = derived.removesuffix("weight") + "slim."
    new = {"values": New(stem + "values", "I16" if spec["integers"] else dtype, (e_out, e_in))}
    if spec["integers"]:
        new["row_scales"] = New(stem + "row_scales", dtype, (e_out,))
        new["column_scales"] = New(stem + "column_scales", dtype, (e_in,))
    if spec["cached_bits"] == 8 and spec["integers"]:
        new["cached_scales"] = New(stem + "cached_scales", dtype, (e_in,))
    if spec["feedback"]:
        new["order"] = New(stem + "order", "I16", (e_in,))
        new["feedback"] = New(stem + "feedback", dtype, (feedback_size(e_in),))
    if rank:
        new["residual_in"] = New(stem + "residual_in", dtype, (2, rank, inputs + e_in))
        new["residual_out"] = New(stem + "residual_out", dtype, (2, e_out, rank))
    if fused:
        rest = list(shape)
        rest[0 if straight else 1] -= e_out
        new["rest"] = New(derived, dtype, tuple(rest))
    options = {
        "module": spec["module"],
        "cached": spec["cached"],
        "cached_bits": spec["cached_bits"],
        "primary": list(spec["primary"]),
        "derived": list(spec["derived"]),
        "transposed": not straight,
        "residual": rank,
        "integers": spec["integers"],
        "dtype": dtype,
        "fused": fused,
        **({"settled": dict(settled)} if settled else {}),
    }
    make = Make(OPERATION, {"primary": primary, "derived": derived}, new, options)
    return [make] if fused else [make, Drop(derived)]


def _mode(attention: Attention, trick: Trick, inputs: int) -> str:
    """What is cached.

    Raises:
        _Left: nothing that was asked for gains anything here.
    """
    asked = trick.option("mode")
    keys, values = attention.key.channels, attention.value.channels
    if attention.cross or asked == "e":
        if not attention.cross:
            raise _Left("it is no cross attention, which mode e is for")
        if asked not in ("auto", "e"):
            raise _Left(f"it is cross attention, whose cache is smallest in mode e, not {asked}")
        if not attention.interface:
            raise _Left(
                "its softmax does not run through transformers' attention interface, which mode e needs"
            )
        return "e"
    if inputs >= keys + values:
        raise _Left(
            f"its keys and values are {keys + values} numbers a token in {attention.heads} heads, and its "
            f"input, which slim attention must be able to restore, is {inputs}: nothing is gained"
        )
    if asked == "auto":
        return "x" if attention.rope is None and attention.interface and inputs < keys else "k"
    return asked


def _rank(trick: Trick, inputs: int, least: int) -> int:
    """The residual's width before activations are asked."""
    asked = trick.option("residual")
    if asked != "auto":
        if int(asked) < least:
            raise _Left(f"a residual of {asked} cannot restore its input; {least} is the least")
        return int(asked)
    step = rank_step(inputs)
    return max(step * math.ceil(inputs / 16 / step), least)


def rank_step(inputs: int) -> int:
    """The widths of residuals that suit a kernel are multiples of this."""
    return STEP if inputs >= 512 else STEP // 2


def _left_over(primary: Slot, derived: Slot) -> Slot:
    """Where the cached side stands in a fused projection once the derived side is gone."""
    rows = primary.width - derived.size
    moved = derived.size if primary.offset > derived.offset else 0
    return Slot(primary.groups, rows, primary.offset - moved, primary.size)
