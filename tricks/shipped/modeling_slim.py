"""Slim attention: what is cached of a token is K (or V, or the layer's input X) and a thin residual.

Mode k caches the keys as they leave their projection (no bias, no norm, no RoPE) and the residual C; values
are V = K·A + C·B. Mode v caches values and makes keys of them. Mode x caches the layer's input, from which
both come by the layer's own projections; mode e is x for cross attention, whose input, the encoder's output,
is held once for all layers. Bias, norm and RoPE are put on when a key is read, with the cos and sin of the
token's position (see `slim_turns`). The residual is kept in 8 bits, with a scale for each token; so is
what it stands beside where a conversion was asked for that (`cached_bits`), with scales for its channels too.

One token is decoded in the order (softmax · [K|C]) · [A;B], several in the order softmax · (K·A + C·B). In
mode v, where keys are not turned by position, one token's scores are (q·Aᵀ)·Vᵀ + (q·Bᵀ)·Cᵀ.
Loads with `trust_remote_code=True` and transformers (5.x) alone.
"""

import copy
import sys

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .slim_rounding import (
    fed_back,
    feedback_size,
    from_bytes,
    row_scale,
    to_bytes,
    whole_numbers,
    with_scale,
)
from .slim_step import Step
from .slim_turns import Buffered, Handed, Rotary

NAME = "tricksmith_slim"


# --- arithmetic ------------------------------------------------------------------------------------


def wide_product(a, b):
    """a @ b in float32 at least: what is summed here is multiplied with large numbers next.

    Args:
        a: [..., m, n]; b: [..., n, k].
    """
    if a.is_cuda and a.dim() == 3 and a.dtype == b.dtype and a.dtype.itemsize == 2:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return at_least_float32(a) @ at_least_float32(b)


def wide_rows(a, b):
    """a [B, n, m] @ b [m, k] in float32 at least."""
    return wide_product(a.flatten(0, 1)[None], b[None])[0].unflatten(0, a.shape[:2])


def moved(error, weights):
    """What rounding errors [B, n, m] of some channels move others by [B, n, k]; weights [m, k]."""
    return wide_rows(error.to(weights.dtype), weights)


def at_least_float32(x):
    """x, in float32 where it has 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotate(x, cos, sin, rope):
    """RoPE on the channels `start` to `start + size` of x [B, h, n, d_h]; cos, sin [B, 1, n, size / 2]."""
    start, size = rope["start"], rope["size"]
    part = x[..., start : start + size]
    if rope["interleaved"]:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = part.chunk(2, -1)
    sin = -sin if rope["backwards"] else sin
    turned = (first * cos).addcmul_(second, -sin), (second * cos).addcmul_(first, sin)
    part = torch.stack(turned, -1).flatten(-2) if rope["interleaved"] else torch.cat(turned, -1)
    if size == x.shape[-1]:
        return part.to(x.dtype)
    return torch.cat([x[..., :start], part.to(x.dtype), x[..., start + size :]], -1)


def half_table(table, rope):
    """The cos or sin that RoPE uses [B, 1, S, size / 2], of what the model hands round [B, S, width]."""
    half = rope["size"] // 2
    table = table[..., 0 : 2 * half : 2] if rope["even"] else table[..., :half]
    return table[:, None]


def heads(x, count):
    """[B, n, h·d_h] as [B, h, n, d_h]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def decode_step(query, scores, primary, residual, from_primary, from_residual):
    """One attention step on the slim cache, in the optimised order.

    Args:
        query: [B, h, 1, d_h], rotated.
        scores: query -> softmax weights [B, h, 1, n] against all cached tokens.
        primary: what is cached of each token [B, n, e].
        residual: C [B, n, r].
        from_primary: A by heads [h, e, d_v], float32 at least.
        from_residual: B by heads [h, r, d_v], likewise.

    Returns:
        The heads' outputs [B, 1, h, d_v], in the dtype of `query`.
    """
    weights = scores(query)
    batch, count, steps, tokens = weights.shape
    rows = weights.reshape(batch, count * steps, tokens)
    rows = rows.to(primary.dtype) if rows.is_cuda else rows  # there products of mixed types are slow
    output = wide_product(rows, primary).view(batch, count, steps, -1) @ from_primary
    if residual.shape[-1]:
        output = output + wide_product(rows, residual).view(batch, count, steps, -1) @ from_residual
    return output.transpose(1, 2).to(query.dtype)


def absorbed_scores(query, primary, residual, from_primary, from_residual):
    """Dot products of queries with keys K = P·A + C·B that are never made.

    Args:
        query: [B, h, 1, d_h].
        primary, residual: P [B, n, e] and C [B, n, r] of the cached tokens.
        from_primary, from_residual: A [h, e, d_h] and B [h, r, d_h], float32 at least.

    Returns:
        [B, h, 1, n], float32 at least.
    """
    asked = query.to(from_primary.dtype)
    absorbed = (asked @ from_primary.transpose(1, 2)).flatten(1, 2)
    scores = absorbed @ primary.to(absorbed.dtype).transpose(1, 2)
    if residual.shape[-1]:
        absorbed = (asked @ from_residual.transpose(1, 2)).flatten(1, 2)
        scores = scores + absorbed @ residual.to(absorbed.dtype).transpose(1, 2)
    return scores.unflatten(1, (query.shape[1], 1))


# --- projections -----------------------------------------------------------------------------------


def plain_product(linear, x):
    """x times the weight of an `nn.Linear` or a `Conv1D`, without its bias."""
    weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T
    return functional.linear(x, weight)


class Derived(nn.Module):
    """The matrices that make one side (values in mode k, keys in mode v) of the cached one.

    `values` [e_out, e_in] is Aᵀ. A 16-bit float has too few digits for it, so beside weights in 16 bits it
    is kept as 16-bit integers times powers of two for its rows and columns. `residual_in` [2, r, d + e_in]
    makes C of a token's input and what is cached of it, and `residual_out` [2, e_out, r] is Bᵀ: each is the
    sum of its two parts. By `order` and `feedback` the cached side is rounded, see `slim_rounding`.
    """

    def __init__(self, spec):
        super().__init__()
        e_out, e_in, width = spec["shape"]
        rank = spec["residual"]
        if spec["integers"]:
            self.register_buffer("values", torch.empty(e_out, e_in, dtype=torch.int16))
            self.row_scales = nn.Parameter(torch.empty(e_out))
            self.column_scales = nn.Parameter(torch.empty(e_in))
        else:
            self.values = nn.Parameter(torch.empty(e_out, e_in))
        if spec["cached_bits"] == 8 and spec["integers"]:
            self.cached_scales = nn.Parameter(torch.empty(e_in))
        if spec["feedback"]:
            self.register_buffer("order", torch.empty(e_in, dtype=torch.int16))
            self.feedback = nn.Parameter(torch.empty(feedback_size(e_in)))
        if rank:
            self.residual_in = nn.Parameter(torch.empty(2, rank, width + e_in))
            self.residual_out = nn.Parameter(torch.empty(2, e_out, rank))

    def matrix(self):
        """Aᵀ [e_out, e_in], float32 at least."""
        if self.values.dtype != torch.int16:
            return at_least_float32(self.values)
        return self.values.float() * self.row_scales.float()[:, None] * self.column_scales.float()

    def residual(self, x, primary):
        """C of the inputs [B, n, d] and what is cached of them [B, n, e]: [B, n, r], float32 at least."""
        both = at_least_float32(torch.cat([x, primary], -1))
        return functional.linear(both, self.wide_in(both.dtype))

    def wide_in(self, dtype):
        """The sum of the parts of `residual_in` [r, d + e]; on a CUDA card it is made once and kept."""
        kept = self.__dict__.get("kept_in")
        given = self.residual_in
        if kept is None or kept[0] != (given.data_ptr(), given._version, dtype):
            kept = (given.data_ptr(), given._version, dtype), given.to(dtype).sum(0)
            if given.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self.__dict__["kept_in"] = kept
        return kept[1]

    def out(self):
        """Bᵀ [e_out, r], float32 at least."""
        return at_least_float32(self.residual_out).sum(0)

    def make(self, primary, residual):
        """The derived side [B, n, e_out], without its bias."""
        matrix, dtype = self.matrix(), primary.dtype
        made = functional.linear(primary, matrix.to(dtype))
        if matrix.dtype != dtype:
            made = made + functional.linear(primary, (matrix - matrix.to(dtype)).to(dtype))
        return made + functional.linear(residual, self.out().to(dtype)) if residual.shape[-1] else made

    def mixes(self, count):
        """A [h, e_in, d_h] and B [h, r, d_h]."""
        residual = self.out() if hasattr(self, "residual_out") else self.matrix()[:, :0]
        return tuple(side.unflatten(0, (count, -1)).transpose(1, 2) for side in (self.matrix(), residual))


class Primary:
    """Stands in for the forward of the projection whose plain product is cached."""

    def __init__(self, linear, memo):
        self.linear, self.memo = linear, memo

    def __call__(self, x):
        product = self.memo.product(x, self.linear)
        product = self.memo.note(x, product, self.memo.spec["primary"])
        return product if self.linear.bias is None else product + self.linear.bias


class Secondary(nn.Module):
    """Takes the place of a projection that slim attention does without."""

    def __init__(self, old, memo):
        super().__init__()
        self.memo = memo
        self.bias = old.bias
        self.slim = Derived(memo.spec)

    def forward(self, x):
        made = self.memo.derive(x, self.slim)
        return made if self.bias is None else made + self.bias


class Fused(nn.Module):
    """Takes the place of a fused projection: its rows for the derived side are gone."""

    def __init__(self, old, memo):
        super().__init__()
        self.memo = memo
        self.straight = isinstance(old, nn.Linear)
        shape = list(old.weight.shape)
        shape[0 if self.straight else 1] -= memo.spec["shape"][0]
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = old.bias
        self.slim = Derived(memo.spec)

    def columns(self):
        """The weight [d, N]."""
        return self.weight.T if self.straight else self.weight

    def forward(self, x):
        spec = self.memo.spec
        rest = self.memo.note(x, self.memo.product(x, self), spec["primary_left"])
        groups, width, offset, size = spec["derived"]
        rest = rest.unflatten(-1, (groups, width - size))
        made = self.memo.derive(x, self.slim).unflatten(-1, (groups, size))
        whole = torch.cat([rest[..., :offset], made, rest[..., offset:]], -1).flatten(-2)
        return whole if self.bias is None else whole + self.bias


# --- one attention ---------------------------------------------------------------------------------


class Memo:
    """What one attention module knows of the token at hand: shared by its projections, cache and kernel."""

    def __init__(self, model, module, spec):
        self.spec = spec
        self.module = module
        self.mode = spec["mode"]
        self.config = module.config if hasattr(module, "config") else model.config
        self.eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        # In float64, where a plan proves itself, nothing is rounded.
        self.narrow = spec["cached_bits"] == 8 and spec["integers"]
        self.x = self.primary = self.stored = self.codes = self.layer = self.rope = self.call = None
        self.skip = False
        self.turns = turns_of(model, module, spec["rope"])
        self.step = Step(model, spec)

    def linear(self, side):
        return self.module.get_submodule(self.spec[side + "_linear"])

    @property
    def by_input(self):
        """Whether a step is decoded from the cached input itself."""
        spec = self.spec
        plain = not (spec["rope"] or spec["norm"]) and spec["interface"] and spec["groups"] == 1
        return self.mode in ("x", "e") and plain

    def projection(self, side):
        """The weight of a projection by heads [h, d, d_h], float32 at least."""
        linear = self.linear(side)
        weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T
        rows = at_least_float32(self.slot(weight.T, self.spec[side]))
        return rows.unflatten(-1, (self.spec["heads"], -1)).transpose(0, 1)

    def bias_scores(self, query):
        """What the keys' bias adds to the scores of a query [B, h, 1, d_h]: [B, h, 1, 1]."""
        bias = self.linear("key").bias
        if bias is None:
            return 0.0
        bias = self.slot(bias, self.spec["key"]).unflatten(0, (self.spec["heads"], -1))
        return (at_least_float32(query) * bias[:, None]).sum(-1, keepdim=True)

    def slot(self, product, slot):
        """One side's channels [B, n, e] of a projection's product."""
        groups, width, offset, size = slot
        if offset == 0 and groups * size == product.shape[-1]:
            return product
        return product.unflatten(-1, (groups, width))[..., offset : offset + size].flatten(-2)

    # The projections tell what they read and made.

    def product(self, x, linear):
        """x [B, n, d] times a projection's weight; in float32 where what is rounded of it is to be known."""
        if self.shaped(x.dtype) and x.dtype != torch.float32:
            return wide_rows(x, self.columns(linear))
        return functional.linear(x, self.columns(linear).T)

    def shaped(self, dtype):
        """Whether rounding errors of what is cached of inputs in `dtype` are fed back."""
        return self.spec["feedback"] and (self.narrow or self.kept_dtype(dtype).itemsize == 2)

    def note(self, x, product, slot):
        """Keep what is cached of a product [B, n, N]; returns the product in the dtype of x."""
        if not self.spec["integers"] and x.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"this model was converted from weights in more than 16 bits, and its cache does not hold in "
                f"{x.dtype}: load it with dtype=torch.float32, or convert a source saved in 16 bits"
            )
        self.x, self.dtype = x, x.dtype
        kept, shaped = self.kept_dtype(x.dtype), self.shaped(x.dtype)
        primary, product = self.slot(product, slot), product.to(x.dtype)
        slim = self.linear("derived").slim
        if self.narrow:
            self.stored = self.in_bytes(primary, slim)
            self.primary = self.open(self.stored)
            return product
        if shaped:
            primary = self.fed_back(primary, slim, kept, None, lambda piece: piece.to(kept))
        self.primary = self.stored = primary.to(kept).to(x.dtype)
        return product

    def fed_back(self, values, slim, kept, scale, rounded):
        """Numbers [B, n, e] rounded with error feedback; `values` may be overwritten."""
        fed = self.step.fed_back(values, slim, kept, scale) if self.skip else None
        return fed_back(values, slim.order.long(), slim.feedback, rounded, moved) if fed is None else fed

    def kept_dtype(self, dtype):
        """What numbers of the cache are rounded to, inputs being in `dtype`."""
        return dtype

    def columns(self, linear):
        """The weight [d, N] of a projection."""
        if isinstance(linear, Fused):
            return linear.columns()
        return linear.weight.T if isinstance(linear, nn.Linear) else linear.weight

    def in_bytes(self, primary, slim):
        """P [B, n, e] in 8 bits."""
        values = primary.float() / slim.cached_scales.float()
        if not self.spec["feedback"]:
            return to_bytes(values)
        scale = row_scale(values)

        def rounded(piece):
            return whole_numbers(piece, scale) * scale.float()

        kept = self.fed_back(values, slim, self.dtype, scale.float(), rounded)
        return with_scale(whole_numbers(kept, scale), scale)

    def note_input(self, module, args):
        self.x = self.primary = self.stored = args[0]
        self.dtype = self.x.dtype

    def open(self, stored):
        """P [B, n, e] of what is kept of it."""
        if not self.narrow:
            return stored
        return from_bytes(stored, self.dtype) * self.linear("derived").slim.cached_scales.to(self.dtype)

    def derive(self, x, slim):
        if self.x is not x:  # the derived side is asked for first
            self.linear("primary")(x)
        if self.spec["residual"]:
            self.codes = self.step.codes(x, self.primary, slim) if self.skip else None
            if self.codes is None:
                residual = slim.residual(x, self.primary)
                self.codes = to_bytes(residual) if self.spec["bits"] == 8 else residual.to(x.dtype)
        if self.skip:  # read by nobody, and so not even filled with zeros
            return x[..., :1].expand(*x.shape[:-1], self.spec["shape"][0])
        return slim.make(self.primary, self.read(self.codes))

    def read(self, codes):
        """C as numbers [B, n, r] of the codes in the cache."""
        if not self.spec["residual"]:
            return self.primary[..., :0]
        return from_bytes(codes, self.dtype) if self.spec["bits"] == 8 else codes

    # The attention begins, its cache is updated, its kernel runs.

    def begin(self, module, args, kwargs):
        self.x = self.primary = self.stored = self.codes = self.layer = self.rope = self.call = None
        self.skip = False
        given = [*args, *kwargs.values()]
        if self.spec["rope"]:
            self.rope, self.call = self.turns.turn(given)
        cache = next((value for value in given if isinstance(value, Cache)), None)
        if self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"slim attention runs with attn_implementation 'eager' or 'sdpa', not "
                f"{self.config._attn_implementation!r}; load the model with one of the two"
            )
        if cache is not None:
            self.layer = slim_layer(cache, self)
            self.skip = self.layer.is_initialized

    def keys_and_values(self, layer):
        """All cached keys and values as attention reads them: [B, h, n, d_h] each."""
        return self.keys(layer), self.values(layer)

    def tokens(self, layer):
        """P [B, n, e] and C [B, n, r] of every cached token."""
        stored, codes = layer.tokens()
        self.primary = self.open(stored)
        return self.primary, self.read(codes)

    def side(self, layer, name, tokens=None):
        """One side of every cached token, bias included: [B, n, e]; `tokens`: P and C where they are read
        already."""
        primary, residual = self.tokens(layer) if tokens is None else tokens
        spec = self.spec
        linear = self.linear(name)
        if self.mode in ("x", "e"):
            made = self.slot(plain_product(linear, primary), spec[name])
        elif name == spec["cached"]:
            made = primary
        else:
            made = linear.slim.make(primary, residual)
        return made if linear.bias is None else made + self.slot(linear.bias, spec[name])

    def keys(self, layer, tokens=None):
        keys = self.side(layer, "key", tokens)
        spec = self.spec
        norm = self.module.get_submodule(spec["norm"]["module"]) if spec["norm"] else None
        if norm is not None and spec["norm"]["flat"]:
            keys = norm(keys)
        keys = heads(keys, spec["heads"])
        if norm is not None and not spec["norm"]["flat"] and not spec["norm"]["after"]:
            keys = norm(keys)
        if spec["rope"]:
            keys = rotate(keys, *self.tables(layer.table), spec["rope"])
        if norm is not None and spec["norm"]["after"]:
            keys = norm(keys)
        return keys

    def values(self, layer):
        return heads(self.side(layer, "value"), self.spec["heads"])

    def tables(self, table):
        """cos and sin of every cached token [B, 1, n, size / 2]."""
        if table.full is None:
            table.full = self.turned(table.positions)
            self.turns.made.append(table)
        return table.full

    def turned(self, positions):
        """cos and sin of the positions [B, n]: [B, 1, n, size / 2] each."""
        pair = self.turns.pair(self.call, positions.long())
        return tuple(half_table(table, self.spec["rope"]) for table in pair)

    def slots(self, table):
        """How many tokens attention sees."""
        return (table.full[0][:, 0, :, 0] if table.positions is None else table.positions).shape[1]

    def tables_at(self, table, slots):
        """cos | sin of the tokens at some slots [B, m]: [B, m, size] float32."""
        if table.positions is None:
            whole = torch.cat(table.full, -1)[:, 0]
            return whole.gather(1, slots[..., None].long().expand(-1, -1, whole.shape[-1])).float()
        return torch.cat(self.turned(table.positions.gather(1, slots.long())), -1)[:, 0].float()


def attention(module, query, key, value, attention_mask, **kwargs):
    """What transformers' attention interface calls in place of the stock kernel."""
    memo = module.tricksmith_slim
    eager = memo.config._attn_implementation == "eager"
    stock = memo.eager if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
    layer, memo.layer = memo.layer, None
    if layer is None or not (memo.skip or layer.always_read):
        return stock(module, query, key, value, attention_mask, **kwargs)
    if memo.mode == "v" and memo.spec["absorbs"] and query.shape[-2] == 1:
        return decode_by_values(memo, layer, query, attention_mask, **kwargs)
    if memo.by_input and query.shape[-2] == 1:
        return decode_by_input(memo, layer, query, attention_mask, **kwargs)
    if memo.mode != "k" or query.shape[-2] > 1:
        memo.step.unsure(layer)
        key, value = memo.keys_and_values(layer)
        if not eager and attention_mask is None and "position_bias" not in kwargs:
            kwargs.setdefault("is_causal", False)
        return stock(module, query, key, value, attention_mask, **kwargs)

    slim = memo.linear("value").slim
    groups = memo.spec["groups"]
    sums = memo.step.rows(memo, layer, query, attention_mask, kwargs)
    if sums is not None:
        output = memo.step.output(sums, slim, query)
    else:
        primary, residual = memo.tokens(layer)
        if not (primary.is_cuda or memo.spec["norm"]):  # both products below are in float32, RoPE then too
            primary = at_least_float32(primary)

        def scores(query):
            # The stock code's own softmax: soft caps, sinks and biases are its business. No values are asked
            # for, and it works in float32, as fused kernels do: in 16 bits it would round scores.
            keys = at_least_float32(memo.keys(layer, (primary, residual)))
            query = at_least_float32(query)
            mask = additive(attention_mask, query)
            return memo.eager(module, query, keys, keys[..., :0], mask, **kwargs)[1]

        mixes = (
            side.repeat_interleave(groups, 0) if groups > 1 else side
            for side in slim.mixes(memo.spec["heads"])
        )
        output = decode_step(query, scores, primary, residual, *mixes)
    bias = memo.linear("value").bias
    if bias is not None:
        bias = memo.slot(bias, memo.spec["value"]).unflatten(0, (memo.spec["heads"], -1))
        output = output + (bias.repeat_interleave(groups, 0) if groups > 1 else bias)
    return output, None


def decode_by_values(memo, layer, query, mask, **kwargs):
    """One attention step where values are cached and keys are never made."""
    primary, residual = memo.tokens(layer)
    mixes = memo.linear("key").slim.mixes(memo.spec["heads"])
    scores = absorbed_scores(query, primary, residual, *mixes) + memo.bias_scores(query)
    values = memo.values(layer).to(scores.dtype)
    output, weights = softmax_of(memo, scores, values, query, mask, **kwargs)
    return output.to(query.dtype), weights


def decode_by_input(memo, layer, query, mask, **kwargs):
    """One attention step where the layer's input is cached, and neither its keys nor its values are made."""
    primary, none = memo.tokens(layer)
    from_key, from_value = memo.projection("key"), memo.projection("value")
    scores = absorbed_scores(query, primary, none, from_key, none) + memo.bias_scores(query)
    weights = softmax_of(memo, scores, scores.transpose(2, 3)[..., :0], query, mask, **kwargs)[1]
    output = decode_step(query, lambda query: weights, primary, none, from_value, none)
    bias = memo.linear("value").bias
    if bias is not None:
        output = output + memo.slot(bias, memo.spec["value"]).unflatten(0, (memo.spec["heads"], -1))
    return output, weights


def softmax_of(memo, scores, values, query, mask, **kwargs):
    """What the stock code makes of scores [B, h, 1, n] and values, its own softmax and all."""
    keys = scores.transpose(2, 3)  # scores as keys of one channel
    kwargs["scaling"] = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    ones = torch.ones_like(keys[..., :1, :])
    return memo.eager(memo.module, ones, keys, values, additive(mask, scores), **kwargs)


def additive(mask, query):
    """A boolean mask as what is added to scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


# --- cache -----------------------------------------------------------------------------------------


class SlimLayer:
    """A cache layer of transformers that holds P [B, 1, n, e] as keys and the codes of C as values."""

    is_slim = True

    def attach(self, memo, table, leads):
        self.memo, self.table, self.leads = memo, table, leads
        self.always_read = isinstance(self, StaticLayer)
        self.full = None

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        if self.always_read:
            shape = (*self.values.shape[:-1], value_states.shape[-1])
            self.values = torch.zeros(shape, dtype=value_states.dtype, device=self.device)
        else:
            self.values = torch.tensor([], dtype=value_states.dtype, device=self.device)

    def update(self, key_states, value_states, *args, **kwargs):
        memo = self.memo
        complete = not (memo.skip or self.always_read)
        primary = memo.stored[:, None]
        codes = primary[..., :0] if memo.codes is None else memo.codes[:, None]
        self.full = super().update(primary, codes, *args, **kwargs)
        if self.leads and memo.rope is not None:
            keep_turn(self.table, memo, primary.shape[0])
        if complete:
            return key_states, value_states
        if memo.spec["interface"]:
            # Only the length is read of these: `attention` asks the cache itself.
            blank = self.full[0][..., :0].expand(-1, memo.spec["heads"], -1, -1)
            return blank, blank
        return memo.keys_and_values(self)

    def tokens(self):
        """What attention sees of the cache now: P [B, n, e] and codes [B, n, c]."""
        primary, codes = self.full
        return primary[:, 0], codes[:, 0]

    def _both(self, name, *args):
        getattr(super(), name)(*args)
        if self.leads and self.table is not None:
            getattr(self.table, name)(*args)

    def reorder_cache(self, beam_idx):
        self._both("reorder_cache", beam_idx)

    def crop(self, tokens_to_remove):
        self._both("crop", tokens_to_remove)

    def batch_repeat_interleave(self, repeats):
        self._both("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices):
        self._both("batch_select_indices", indices)

    def reset(self):
        self._both("reset")

    def activate_past_recording(self):
        if hasattr(super(), "activate_past_recording"):
            self._both("activate_past_recording")


def keep_turn(table, memo, batch):
    """Take in what turns the new tokens: their positions, or else cos and sin themselves."""
    if memo.call is None:
        cos, sin = (half_table(side, memo.spec["rope"]) for side in memo.rope)
        table.positions = None
        table.full = table.update(
            cos.expand(batch, -1, -1, -1).contiguous(), sin.expand(batch, -1, -1, -1).contiguous()
        )
        return
    positions = memo.turns.positions(memo.call).to(torch.int32)[:, None, :, None]
    positions = positions.expand(batch, -1, -1, -1).contiguous()
    table.positions = table.update(positions, positions[..., :0])[0][:, 0, :, 0]
    table.full = None


class SlimDynamicLayer(SlimLayer, DynamicLayer):
    pass


class SlimDynamicSlidingWindowLayer(SlimLayer, DynamicSlidingWindowLayer):
    pass


class SlimStaticLayer(SlimLayer, StaticLayer):
    pass


class SlimStaticSlidingWindowLayer(SlimLayer, StaticSlidingWindowLayer):
    pass


class SharedLayer(DynamicLayer):
    """Cross attention's view of the encoder's output that the first layer of its cache holds for all."""

    is_slim = True
    always_read = False

    def __init__(self, memo, first):
        super().__init__()
        self.memo, self.first, self.table, self.leads = memo, first, None, False
        self.is_initialized = False

    def update(self, key_states, value_states, *args, **kwargs):
        if self.first is None:
            self.keys = self.memo.x[:, None]
            self.values = self.keys[..., :0]
        self.is_initialized = True
        return key_states, value_states

    def tokens(self):
        keys = (self.first or self).keys
        return keys[:, 0], keys[:, 0, :, :0]

    def get_seq_length(self):
        return (self.first or self).keys.shape[-2] if self.is_initialized else 0


for _name in ("reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices"):

    def _first_only(self, *args, _name=_name):
        if self.first is None:
            getattr(DynamicLayer, _name)(self, *args)

    setattr(SharedLayer, _name, _first_only)

KINDS = {
    DynamicLayer: SlimDynamicLayer,
    DynamicSlidingWindowLayer: SlimDynamicSlidingWindowLayer,
    StaticLayer: SlimStaticLayer,
    StaticSlidingWindowLayer: SlimStaticSlidingWindowLayer,
}


def slim_layer(cache, memo):
    """This attention's layer of `cache`, made slim while it is still empty.

    Raises:
        ValueError: the cache holds tokens of another model, or is of a kind that is not known here.
    """
    index = memo.spec["index"]
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.cross_attention_cache if memo.spec["cross"] else cache.self_attention_cache
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if getattr(layer, "is_slim", False):
        return layer
    if layer.is_initialized and layer.get_seq_length() > 0:
        raise ValueError(
            "this cache was filled by the source model; pass an empty one, or none, and the whole text"
        )
    if memo.mode == "e":
        slim = SharedLayer(memo, next((one for one in cache.layers if isinstance(one, SharedLayer)), None))
    elif type(layer) not in KINDS:
        raise ValueError(f"slim attention knows no {type(layer).__name__}; use a DynamicCache or StaticCache")
    else:
        slim = fresh(KINDS[type(layer)], layer)
        table, leads = None, False
        if memo.spec["rope"]:
            # Layers that keep the same tokens and are given the same cos and sin share one table of them.
            name = (type(layer).__name__, getattr(layer, "sliding_window", None), memo.spec["rope"]["table"])
            tables = cache.__dict__.setdefault("slim_tables", {})
            leads = name not in tables
            table = tables.setdefault(name, fresh(type(layer), layer))
        slim.attach(memo, table, leads)
    cache.layers[index] = slim
    return slim


def fresh(kind, like):
    """An empty cache layer of class `kind` with the sizes of `like`."""
    sizes = {"sliding_window": getattr(like, "sliding_window", None)}
    if isinstance(like, StaticLayer):
        sizes["max_cache_len"] = like.max_cache_len
    made = kind(**{name: size for name, size in sizes.items() if size is not None})
    if getattr(like, "record_past", False):
        made.activate_past_recording()
    return made


def cache_bytes(cache):
    """Bytes that a live cache holds of tokens, shared parts counted once."""
    parts = [cache]
    if isinstance(cache, EncoderDecoderCache):
        parts = [cache.self_attention_cache, cache.cross_attention_cache]
    tensors = {}
    for part in parts:
        for layer in [*part.layers, *part.__dict__.get("slim_tables", {}).values()]:
            for tensor in (layer.keys, layer.values):
                if tensor is not None:
                    tensors[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
    return sum(tensors.values())


# --- installation ----------------------------------------------------------------------------------


def install(model, options):
    """Make the attention modules that `options` names slim, in place.

    Args:
        options: "layers", one specification for each attention module (see `tricks.slim`).
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    for spec in options["layers"]:
        module = model.get_submodule(spec["module"])
        memo = Memo(model, module, spec)
        module.tricksmith_slim = memo
        module.register_forward_pre_hook(memo.begin, with_kwargs=True)
        if spec["mode"] in ("x", "e"):
            memo.linear("key").register_forward_pre_hook(memo.note_input)
        else:
            derived = memo.linear("derived")
            fused = spec["primary_linear"] == spec["derived_linear"]
            replace(module, spec["derived_linear"], (Fused if fused else Secondary)(derived, memo))
            if not fused:
                primary = memo.linear("primary")
                primary.forward = Primary(primary, memo)
        if spec["interface"]:
            module.config = copy.copy(memo.config)
            module.config._attn_implementation_internal = NAME


def turns_of(model, module, rope):
    """Where the cos and sin of an attention come from; one object for all with the same rotary embedding."""
    source = rope and rope["source"]
    if not source:
        return Handed()
    if "buffer" in source:
        made = Buffered(module, source["buffer"], source["sines_first"])
    else:
        known = model.__dict__.setdefault("tricksmith_slim_turns", {})
        made = known.get(source["module"])
        if made is not None:
            return made
        made = known[source["module"]] = Rotary(model.get_submodule(source["module"]))
    model.base_model.register_forward_hook(made.forget)
    return made


def replace(module, path, new):
    """Put `new` at the submodule path `path`."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
