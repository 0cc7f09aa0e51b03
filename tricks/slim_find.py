"""Finds attention: which projections make keys and values, and what happens to a key before it is cached.

A small random model of the class (see `small`) runs once in float64 with a cache that notes what it is given.
A cached value is compared, channel by channel, with the outputs of the linear layers inside the module that
cached it; a key likewise at position 0, where RoPE turns nothing. Then the key is made again from the
projection's output by the shipped code (norm, RoPE in all its layouts) and must come out equal at every
position: what cannot be made again is refused, with the reason.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tricks.errors import BadInput
from tricks.float64 import float64_arithmetic
from tricks.inputs import sample_inputs
from tricks.model import Blueprint, build, first_line, spread_experts
from tricks.quiet import quiet
from tricks.shipped.modeling_slim import half_table, heads, rotate
from tricks.shipped.slim_turns import Call, Pair, blanked
from tricks.slim_turns import Turn, find_turns, is_pair
from tricks.small import affordable, randomise, shrunk
from tricks.subject import Subject
from tricks.watch import is_linear

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PROBE = "tricksmith_slim_probe"
_CLOSE = 1e-9
_LEAST_HEAD = 16
"""Channels of a head that show a RoPE on a quarter of them."""


class Slot(NamedTuple):
    """Where one side's channels stand in a projection's output, seen as `groups` rows of `width` channels:
    `size` channels from `offset` on in every row."""

    groups: int
    width: int
    offset: int
    size: int

    @property
    def channels(self) -> int:
        return self.groups * self.size

    def times(self, factor: int) -> Slot:
        return Slot(self.groups, *(factor * n for n in self[1:]))


_NOWHERE = Slot(1, 0, 0, 0)


@dataclass(frozen=True)
class Attention:
    """One attention module that caches, in the sizes of the subject (not of the small model).

    `key_linear` and `value_linear` are paths inside `module`; `reason` says why slim attention does not fit.
    `norm` is {module, flat, after} and `rope` {start, size, interleaved, even, backwards, table, wide,
    source}, as the shipped code reads them. `interface` says whether its softmax runs through transformers'
    attention interface.
    """

    module: str
    index: int
    cross: bool
    heads: int = 0
    groups: int = 1
    key_linear: str = ""
    value_linear: str = ""
    key: Slot = _NOWHERE
    value: Slot = _NOWHERE
    norm: dict[str, Any] | None = None
    rope: dict[str, Any] | None = None
    interface: bool = False
    reason: str | None = None


class Refused(Exception):
    """Why an attention module is not understood."""


def find_attention(subject: Subject) -> list[Attention]:
    """Every attention module of a subject that caches, in the order in which it runs.

    Raises:
        BadInput: no small model of this class could be run with a cache, or none of its modules caches.
    """
    problem = "no small model of it could be built"
    blueprints = shrunk(Blueprint(type(subject.model).__name__, subject.config))
    # Those whose heads are known to be too small come last: they do where nothing turns.
    for blueprint in sorted(blueprints, key=lambda one: _head(one.config) < _LEAST_HEAD):
        try:
            if not affordable(build(blueprint, "meta", torch.float32)):
                continue
            model = build(blueprint, "cpu", torch.float64).double()
            randomise(model)
            spread_experts(model)
            seen = _watch(model)
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way at an odd size
            problem = first_line(error)
            continue
        if not seen:
            name = type(model).__name__
            raise BadInput(
                f"{name} keeps no cache of keys and values, so slim attention has nothing to do there"
            )
        same_size = model.num_parameters() == subject.model.num_parameters()  # type: ignore[operator]
        turned = [one.keys.shape[-1] for one in seen.values() if one.tables is not None]
        if min(turned, default=_LEAST_HEAD) < _LEAST_HEAD and not same_size:
            problem = "its heads are too small to see how they turn"
            continue
        found = [_understand(model, subject.model, one) for one in seen.values()]
        spread = _spread(_with_table_types(model, found), model, subject.model)
        if spread is not None:
            return spread
        problem = "a small model of it has other layers"
    raise BadInput(f"{type(subject.model).__name__}: its attention could not be watched ({problem})")


def _head(config: Any) -> int:
    """Channels of a head by the configuration; `_LEAST_HEAD` where it does not say."""
    text = config.get_text_config(decoder=True)

    def value(name: str) -> Any:
        try:
            return getattr(text, name, None)
        except Exception:  # noqa: BLE001 - transformers refuses to say what differs from layer to layer
            return None

    size, width, count = value("head_dim"), value("hidden_size"), value("num_attention_heads")
    if not isinstance(size, int) and isinstance(width, int) and isinstance(count, int) and count:
        size = width // count
    return size if isinstance(size, int) else _LEAST_HEAD


def _spread(found: list[Attention], small: nn.Module, full: nn.Module) -> list[Attention] | None:
    """What was found in a small model, for every attention module of the full one, which has more layers.

    A module is like those of the small model whose path differs in numbers alone and whose layer is of the
    same type by the configuration. None where these differ among themselves, or there are none.
    """
    kinds = {type(small.get_submodule(one.module)) for one in found}
    names = [name for name, module in full.named_modules() if type(module) in kinds]
    if {name for name, module in small.named_modules() if type(module) in kinds} == set(names):
        return found
    alike: dict[tuple[str, str], set[str]] = {}
    shown: dict[tuple[str, str], Attention] = {}
    for one in found:
        if _index(small, one.module) != one.index:
            return None
        key = (_NUMBER.sub("*", one.module), _layer_type(small, one.module))
        alike.setdefault(key, set()).add(str(replace(one, module="", index=0)))
        shown[key] = one
    if any(len(group) > 1 for group in alike.values()):
        return None
    spread = []
    for name in names:
        like = shown.get((_NUMBER.sub("*", name), _layer_type(full, name)))
        if like is None:
            if _NUMBER.sub("*", name) in {path for path, _ in shown}:
                return None
            continue  # of a tower that keeps no cache
        spread.append(replace(like, module=name, index=_index(full, name)))
    return spread


def _index(model: nn.Module, name: str) -> int:
    """The place of a module in the cache."""
    own = getattr(model.get_submodule(name), "layer_idx", None)
    numbers = _NUMBER.findall(name)
    return own if isinstance(own, int) else int(numbers[0]) if numbers else 0


def _layer_type(model: Any, name: str) -> str:
    """What the configuration calls the layer of a module; "" where it names no types."""
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
    numbers = _NUMBER.findall(name)
    if not isinstance(types, list) or not numbers or int(numbers[0]) >= len(types):
        return ""
    return str(types[int(numbers[0])])


def _with_table_types(model: nn.Module, found: list[Attention]) -> list[Attention]:
    """`found` with, in every rope, whether cos and sin come in float32 where the model runs in 16 bits."""
    if not any(one.rope for one in found):
        return found
    try:
        half = _watch(model.to(torch.bfloat16), exactly=False)
    except BadInput:
        return found
    return [
        one
        if one.rope is None or (seen := half[one.module].tables) is None
        else replace(one, rope={**one.rope, "wide": seen[0].dtype == torch.float32})
        for one in found
    ]


# --- watching --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What one module gave to its cache, and what ran inside it before."""

    module: str
    index: int
    cross: bool
    keys: torch.Tensor
    values: torch.Tensor
    calls: list[tuple[str, torch.Tensor, torch.Tensor]]
    turns: list[Turn]
    before: int
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def tables(self) -> Pair | None:
        """The cos and sin that it is likeliest to turn by."""
        return self.turns[0].pair if self.turns else None


class _Recorder(DynamicCache):
    def __init__(self, watcher: _Watcher, cross: bool) -> None:
        # Layers of another kind than attention have places of their own in the cache.
        super().__init__(config=watcher.model.config if watcher.mixed else None)
        self.watcher, self.cross = watcher, cross

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.watcher.cached(key_states, value_states, layer_idx, self.cross)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class _Watcher:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.stack: list[tuple[str, list[Any]]] = []
        self.seen: dict[str, _Seen] = {}
        self.pairs: list[tuple[str, Pair, Call]] = []
        types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
        self.mixed = any("attention" not in kind or "linear" in kind for kind in types)

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.stack.append((name, [*args, *kwargs.values()]))
        self._calls[name] = []

    _calls: dict[str, list[tuple[str, torch.Tensor, torch.Tensor]]]

    def leave(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self.stack.pop()
        given = [*args, *kwargs.values()]
        if is_pair(out):
            self.pairs.append((name, out, blanked(args, kwargs)))
        if isinstance(out, torch.Tensor) and given and isinstance(given[0], torch.Tensor):
            for outer, _ in self.stack:
                self._calls[outer].append((name.removeprefix(outer + "."), given[0], out))

    def cached(self, keys: torch.Tensor, values: torch.Tensor, index: int, cross: bool) -> None:
        name, given = self.stack[-1]
        turns = find_turns(self.model, name, given, self.pairs, keys)
        calls = self._calls[name]
        self.seen[name] = _Seen(name, index, cross, keys, values, calls, turns, len(calls))

    def asks(
        self, module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> Any:
        name = self.stack[-1][0]
        if name in self.seen:
            self.seen[name].asked = {"query": query, "key": key, "value": value}
        return _eager(module)(module, query, key, value, attention_mask, **kwargs)


def _eager(module: nn.Module) -> Any:
    import sys

    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _watch(model: nn.Module, exactly: bool = True) -> dict[str, _Seen]:
    watcher = _Watcher(model)
    watcher._calls = {}
    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: watcher.enter(name, m, args, kwargs), with_kwargs=True
            )
        )
        handles.append(
            module.register_forward_hook(
                lambda m, args, kwargs, out, name=name: watcher.leave(name, args, kwargs, out),
                with_kwargs=True,
            )
        )
        config = getattr(module, "config", None)
        if (
            config is not None
            and not hasattr(module, "set_attn_implementation")
            and _eager(module) is not None
        ):
            own = copy.copy(config)
            own._attn_implementation_internal = _PROBE
            module.config = own
    ALL_ATTENTION_FUNCTIONS.register(_PROBE, watcher.asks)
    problem = BadInput("it takes no text")
    try:
        for inputs in sample_inputs(model, seed=3):
            watcher.seen.clear()
            cache: Cache = _Recorder(watcher, False)
            if "decoder_input_ids" in inputs:
                cache = EncoderDecoderCache(cache, _Recorder(watcher, True))
            watcher.stack.clear()
            try:
                with torch.no_grad(), float64_arithmetic() if exactly else nullcontext(), quiet():
                    model(**{**inputs, "use_cache": True, "past_key_values": cache})
            except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
                problem = BadInput(first_line(error))
                continue
            return watcher.seen
    finally:
        for handle in handles:
            handle.remove()
    raise problem


# --- understanding ---------------------------------------------------------------------------------


def _understand(model: nn.Module, full: nn.Module, seen: _Seen) -> Attention:
    refused = Attention(seen.module, seen.index, seen.cross)
    module = model.get_submodule(seen.module)
    try:
        keys, values = seen.keys, seen.values
        if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
            raise Refused("what it caches is not keys and values by heads")
        linears = [
            (name, x, out)
            for name, x, out in seen.calls[: seen.before]
            if is_linear(module.get_submodule(name)) and out.ndim == 3
        ]
        value = _locate(_flat(values), linears, slice(None))
        if value is None:
            raise Refused("its values are not the plain output of a linear layer")
        norm, key = _key_path(module, keys, seen, linears)
        if key[1] is not value[1] and not torch.equal(key[1], value[1]):
            raise Refused("its keys and values are made of different inputs")
        rope = _rope(module, seen, norm, key)
        groups = 1
        interface = bool(seen.asked)
        if interface:
            groups = seen.asked["query"].shape[1] // keys.shape[1]
        inside: Any = module.get_submodule(value[0])
        same_one: Any = full.get_submodule(f"{seen.module}.{value[0]}")
        factor = round((same_one.weight.numel() / inside.weight.numel()) ** 0.5)
        if rope is not None:
            rope = {**rope, "start": rope["start"] * factor, "size": rope["size"] * factor}
        return Attention(
            seen.module,
            seen.index,
            seen.cross,
            heads=keys.shape[1],
            groups=groups,
            key_linear=key[0],
            value_linear=value[0],
            key=key[2].times(factor),
            value=value[2].times(factor),
            norm=norm,
            rope=rope,
            interface=interface,
        )
    except Refused as reason:
        factor = _factor(module, full.get_submodule(seen.module))
        sizes = [factor * _size(x) for x in (seen.keys, seen.values)]
        slots = [Slot(1, size, 0, size) for size in sizes]
        return replace(refused, key=slots[0], value=slots[1], reason=str(reason))


def _size(x: torch.Tensor) -> int:
    """Numbers that one side caches of a token."""
    return int(x.shape[1] * x.shape[-1]) if x.ndim == 4 else 0


def _factor(small: nn.Module, full: nn.Module) -> int:
    """How many times wider a module is than that of the small model."""
    for one, other in zip(small.parameters(), full.parameters(), strict=False):
        if one.ndim == 2:
            return round(math.sqrt(other.numel() / one.numel()))
    return 1


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[B, h, S, d_h] as [B, S, h·d_h]."""
    return x.transpose(1, 2).flatten(2)


def _columns(target: torch.Tensor, source: torch.Tensor) -> list[int] | None:
    """For each channel of `target` [T, e] the channel of `source` [T, N] it is a positive multiple of."""
    a, b = (x / x.norm(dim=0).clamp_min(1e-30) for x in (target, source))
    close, place = (a.T @ b).max(1)
    return place.tolist() if bool((close > 1 - 1e-12).all()) else None


def _locate(
    target: torch.Tensor, linears: list[tuple[str, torch.Tensor, torch.Tensor]], where: slice
) -> tuple[str, torch.Tensor, Slot] | None:
    """The linear layer and slot whose output `target` [B, S, e] is at the positions `where`."""
    for name, x, out in linears:
        if out.shape[:2] != target.shape[:2]:
            continue
        places = _columns(target[:, where].flatten(0, 1), out[:, where].flatten(0, 1))
        slot = None if places is None else _slot(places, out.shape[-1])
        if slot is not None:
            return name, x, slot
    return None


def _slot(places: list[int], width: int) -> Slot | None:
    """Channels as a slot of a projection of `width` channels."""
    count = len(places)
    for size in range(count, 0, -1):
        if count % size:
            continue
        groups = count // size
        stride = places[size] - places[0] if groups > 1 else width
        if stride < size or stride * groups != width:
            continue
        offset = places[0]
        if places == [g * stride + offset + i for g in range(groups) for i in range(size)]:
            return Slot(groups, stride, offset, size)
    return None


_Key = tuple[str, torch.Tensor, Slot]


def _key_path(
    module: nn.Module, keys: torch.Tensor, seen: _Seen, linears: list[Any]
) -> tuple[dict[str, Any] | None, _Key]:
    """The norm on the way to a key, if there is one, and the projection it comes from."""
    first = slice(0, 1)
    direct = _locate(_flat(keys), linears, first)
    if direct is not None:
        return None, direct
    shape = keys.shape
    for name, x, out in seen.calls[: seen.before]:
        if is_linear(module.get_submodule(name)) or x.shape != out.shape:
            continue
        for flat in (True, False):
            layouts = _layouts(out, x, shape, flat)
            for given, made in layouts:
                if _columns(_flat(keys)[:, first].flatten(0, 1), made[:, first].flatten(0, 1)) != list(
                    range(made.shape[-1])
                ):
                    continue
                key = _locate(given, linears, first)
                if key is not None:
                    after = (
                        not flat
                        and bool((made - _flat(keys)).abs().max() < _CLOSE)
                        and seen.tables is not None
                    )
                    return {"module": name, "flat": flat, "after": after}, key
    raise Refused("its keys are not a projection, a norm of one, or either of them under RoPE")


def _layouts(out: torch.Tensor, x: torch.Tensor, shape: torch.Size, flat: bool) -> Iterator[Any]:
    """(input, output) of a norm as [B, S, e]."""
    batch, count, tokens, width = shape
    if flat and out.shape == (batch, tokens, count * width):
        yield x, out
    if not flat and out.shape == (batch, tokens, count, width):
        yield x.flatten(2), out.flatten(2)
    elif not flat and out.shape == (batch, count, tokens, width):
        yield _flat(x), _flat(out)


def _rope(module: nn.Module, seen: _Seen, norm: dict[str, Any] | None, key: _Key) -> dict[str, Any] | None:
    """How keys are turned by position: found by trying the layouts that the shipped code knows."""
    name, _, slot = key
    out = next(out for n, _, out in reversed(seen.calls[: seen.before]) if n == name)
    raw = out.unflatten(-1, (slot.groups, slot.width))[..., slot.offset : slot.offset + slot.size].flatten(2)
    count = seen.keys.shape[1]
    normed = module.get_submodule(norm["module"]) if norm else None

    def remade(rope: dict[str, Any] | None, tables: Pair | None = None) -> torch.Tensor:
        keys = normed(raw) if normed is not None and norm and norm["flat"] else raw
        keys = heads(keys, count)
        if normed is not None and norm and not norm["flat"] and not norm["after"]:
            keys = normed(keys)
        if rope is not None and tables is not None:
            cos, sin = (half_table(table, rope) for table in tables)
            keys = rotate(keys, cos, sin, rope)
        if normed is not None and norm and norm["after"]:
            keys = normed(keys)
        result: torch.Tensor = keys
        return result

    def same(rope: dict[str, Any] | None, tables: Pair | None = None) -> bool:
        with torch.no_grad(), float64_arithmetic():
            made = remade(rope, tables)
        return made.shape == seen.keys.shape and bool(
            (made - seen.keys).abs().max() <= _CLOSE * seen.keys.abs().max()
        )

    if same(None):
        return None
    if not seen.turns:
        raise Refused("it turns its keys by position in its own way, not by cos and sin that can be found")
    for turn in seen.turns:
        for rope in _ropes(turn.pair[0], seen.keys.shape[-1]):
            if same(rope, turn.pair):
                return {**rope, "table": id(turn.common), "wide": False, "source": turn.source}
    raise Refused("how it turns its keys by position is not understood")


def _ropes(table: torch.Tensor, width: int) -> Iterator[dict[str, Any]]:
    given = table.shape[-1]
    if table.ndim != 3 or table.is_complex():
        raise Refused("its position tables are not cos and sin by token")
    for size in (given, 2 * given):
        if size > width:
            continue
        for start in dict.fromkeys((0, width - size)):
            for interleaved in (False, True):
                for even in (False, True):
                    if even and size != given:
                        continue
                    layout = {"start": start, "size": size, "interleaved": interleaved, "even": even}
                    yield from ({**layout, "backwards": backwards} for backwards in (False, True))
