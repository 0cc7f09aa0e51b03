"""Attention with a memory of constant size: the last tokens and the first exactly, a polynomial for the rest.

For a query, exp(q·k) is exact for the last `window` tokens (itself included) and the first `sinks` tokens.
For the older ones between, a polynomial p(q·k) stands for it, which turns their sums into a state of constant
size: q·k to the power j is a sum over monomials of q times monomials of k, so that

    Σ_i p(q·k_i) [v_i, 1]  =  Σ_monomials  coefficient · q^a · ( Σ_i k_i^a [v_i, 1] )

and the inner sums are kept, per key-value head, in float32. With `parts` > 1 the head's channels are split,
and the product of the parts' polynomials stands for exp. Sums of both kinds are combined relative to the
largest exact logit, as in a stable softmax. Where the polynomial part's total is not positive (odd degrees
can be negative) it is left out.

Source: Graef, Gupta, "Approximate attention" (a draft in OpenMachine-ai/transformer-tricks, sections 2 to 6).
"""

from __future__ import annotations

import functools
import math
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import eager_mask

NAME = "tricksmith_approximate"
LARGEST = 1 << 24
"""Monomials of queries in memory at a time, over all heads and tokens."""


def install(model: nn.Module, options: dict[str, Any]) -> None:
    """Exchange the attention of all layers and the cache.

    `options`: `window` and `sinks` in tokens, `coefficients` of the polynomial (empty: older tokens are
    forgotten), `parts`; `layers`, where each has a polynomial of its own: module path -> coefficients.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    layers = options.get("layers", {})
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = NAME
            own = {"coefficients": layers[path]} if path in layers else {}
            module.tricksmith_approximate = {**options, **own}
    model.register_forward_pre_hook(_exchange_cache, with_kwargs=True)


def _exchange_cache(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A cache that grows would keep what this attention never reads."""
    given = kwargs.get("past_key_values")
    if isinstance(given, StateCache) or (given is not None and given.get_seq_length() > 0):
        return None
    use = kwargs.get("use_cache")
    if given is None and not (module.config.use_cache if use is None else use):
        return None
    kwargs["past_key_values"] = StateCache(module.tricksmith_approximate)
    return args, kwargs


class StateCache(Cache):
    """A cache of `StateLayer`s."""

    def __init__(self, options: dict[str, Any]) -> None:
        made: Any = lambda: StateLayer(options)  # noqa: E731 - called for each new layer
        super().__init__(layer_class_to_replicate=made)


class StateLayer(DynamicLayer):
    """The sinks, the last tokens and the state of one layer.

    `keys`, `values` [B, Hk, held, dh]; `places` [held] and `valid` [B, held] say which tokens they are and
    whether each is more than padding; `state` [B, Hk, sums, dv + 1].
    """

    is_croppable = False

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.options = options
        self.seen = 0
        self.places = torch.empty(0, dtype=torch.long)
        self.valid: Any = None
        self.state: Any = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The held and the new keys and values; `attend` takes in the new ones when it has used them."""
        keys: Any
        keys, values = super().update(key_states, value_states)
        keys.tricksmith_layer = self
        return keys, values

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = len(self.places)
        return held + query_length, self.seen - held

    def reset(self) -> None:
        super().reset()
        self.seen, self.places, self.valid, self.state = 0, self.places[:0], None, None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.batch_only(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.batch_only(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.batch_only(torch.arange(len(self.valid)).repeat_interleave(repeats))

    def batch_only(self, rows: torch.Tensor) -> None:
        """Keep or repeat rows of the batch in what this layer holds besides keys and values."""
        self.valid = self.valid[rows.to(self.valid.device)]
        if self.state is not None:
            self.state = self.state[rows.to(self.state.device)]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, T, dh], key and value [B, Hk, held + T, dh] -> [B, T, H, dv]."""
    options = module.tricksmith_approximate
    layer = getattr(key, "tricksmith_layer", None) or StateLayer(options)
    batch, heads, length, size = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = size**-0.5 if scaling is None else scaling
    held = key.shape[2] - length
    fresh = torch.ones(batch, length, dtype=torch.bool, device=key.device)
    if attention_mask is not None:
        fresh = (attention_mask[:, 0, -1, -length:] > -1).expand(batch, -1)
    sums = _monomials(size, tuple(options["coefficients"]), options["parts"], query.device)
    step = max(min(LARGEST // max(heads * batch * (len(sums[1]) if sums else 1), 1), 512), 1)
    keys, values = key[:, :, :held].to(wide), value[:, :, :held].to(wide)
    valid = fresh[:, :0] if layer.valid is None else layer.valid
    places = layer.places.to(key.device)
    parts = []
    for first in range(0, length, step):
        last = min(first + step, length)
        new = torch.arange(layer.seen, layer.seen + last - first, device=key.device)
        keys = torch.cat([keys, key[:, :, held + first : held + last].to(wide)], 2)
        values = torch.cat([values, value[:, :, held + first : held + last].to(wide)], 2)
        valid = torch.cat([valid, fresh[:, first:last]], 1)
        places = torch.cat([places, new])
        q = query[:, :, first:last].to(wide) * scale
        parts.append(_read(q, keys, values, valid, places, new, layer.state, options, sums))
        layer.seen += last - first
        # What the next query no longer sees exactly: held are the sinks and then the newest, without a gap.
        # Counted here and not on the card, which a CUDA graph could not ask.
        kept, held_now = min(options["sinks"], layer.seen), keys.shape[2]
        old = min(max(held_now - kept - options["window"] + 1, 0), held_now - kept)
        if old:
            out = slice(kept, kept + old)
            if sums:
                _take_in(layer, keys[:, :, out], values[:, :, out], valid[:, out], sums)
            keys, values = (_without(x, out, 2) for x in (keys, values))
            valid, places = _without(valid, out, 1), _without(places, out, 0)
    layer.keys, layer.values = keys.to(key.dtype), values.to(value.dtype)
    layer.valid, layer.places = valid, places
    return torch.cat(parts, 2).transpose(1, 2).to(query.dtype).contiguous(), None


def _without(x: torch.Tensor, cut: slice, axis: int) -> torch.Tensor:
    """x without what `cut` takes of one axis."""
    return torch.cat([x.narrow(axis, 0, cut.start), x.narrow(axis, cut.stop, x.shape[axis] - cut.stop)], axis)


def _read(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    valid: torch.Tensor,
    places: torch.Tensor,
    new: torch.Tensor,
    state: Any,
    options: dict[str, Any],
    sums: Any,
) -> torch.Tensor:
    """What queries q [B, H, t, dh] at `new` places read: [B, H, t, dv]."""
    batch, heads, count, size = q.shape
    shared = keys.shape[1]
    q = q.reshape(batch, shared, heads // shared * count, size)
    logits = q @ keys.transpose(-1, -2)
    at = new.repeat(heads // shared)[:, None]
    causal = (places <= at) & valid[:, None, None, :]
    # A padding token sees itself, so that nothing is divided by zero.
    causal = causal | (places == at)
    near = (places > at - options["window"]) | (places < options["sinks"])
    exact = logits.masked_fill(~(causal & near), -math.inf)
    top = exact.amax(-1, keepdim=True).clamp_min(-60.0)
    weights = (exact - top).exp()
    upper, lower = weights @ values, weights.sum(-1, keepdim=True)
    if sums:
        far = _product(q, keys, options).masked_fill(~(causal & ~near), 0.0)
        rest, total = far @ values, far.sum(-1, keepdim=True)
        if state is not None:
            both = (_powers(q, sums) * sums[1].to(q.dtype)) @ state
            rest, total = rest + both[..., :-1], total + both[..., -1:]
        rest, total = rest * (-top).exp(), total * (-top).exp()
        positive = total > 0
        upper = upper + rest.where(positive, torch.zeros_like(rest))
        lower = lower + total.where(positive, torch.zeros_like(total))
    return (upper / lower).view(batch, heads, count, -1)


def _product(q: torch.Tensor, keys: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The polynomial of each dot product, part by part."""
    parts = options["parts"]
    result: Any = 1.0
    for a, b in zip(q.chunk(parts, -1), keys.chunk(parts, -1), strict=True):
        x = a @ b.transpose(-1, -2)
        value = torch.zeros_like(x)
        for coefficient in reversed(options["coefficients"]):
            value = value * x + coefficient
        result = result * value
    return result  # type: ignore[no-any-return]


def _take_in(
    layer: StateLayer, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor, sums: Any
) -> None:
    """Add tokens to the state."""
    ones = torch.ones_like(values[..., :1])
    added = torch.cat([values, ones], -1) * valid[:, None, :, None]
    both = _powers(keys, sums).transpose(-1, -2) @ added
    layer.state = both if layer.state is None else layer.state + both


@functools.lru_cache(maxsize=64)
def _monomials(size: int, coefficients: tuple[float, ...], parts: int, device: torch.device) -> Any:
    """(index, weights, parts): each monomial of a part as `degree` indices into [1, x], and the coefficient
    of each product of monomials; None without a polynomial."""
    if not coefficients:
        return None
    degree, width = len(coefficients) - 1, size // parts
    rows, weights = [], []
    for row in combinations_with_replacement(range(width + 1), degree):
        used = [one for one in row if one]
        ways = math.factorial(len(used))
        for one in set(used):
            ways //= math.factorial(used.count(one))
        rows.append(row)
        weights.append(coefficients[len(used)] * ways)
    single = torch.tensor(weights, dtype=torch.float64)
    product = single
    for _ in range(parts - 1):
        product = torch.outer(product, single).flatten()
    index = torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), degree)
    return index, product.to(device), parts


def _powers(x: torch.Tensor, sums: Any) -> torch.Tensor:
    """All monomials [..., sums] of x [..., dh]."""
    index, _, parts = sums
    result: Any = None
    for part in x.chunk(parts, -1):
        extended = torch.cat([torch.ones_like(part[..., :1]), part], -1)
        powers = extended.new_ones(*part.shape[:-1], len(index))
        for column in index.unbind(1):
            powers = powers * extended[..., column]
        result = powers if result is None else (result[..., :, None] * powers[..., None, :]).flatten(-2)
    return result  # type: ignore[no-any-return]
