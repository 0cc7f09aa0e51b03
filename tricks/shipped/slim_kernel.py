"""One decoding step of slim attention over the cache [K | C], read once.

Notation: B batch rows, h heads of dk numbers, d = h·dk, r residual numbers. Cached per token are the raw key
row K [d], before any rotary turn, and C [r]. For the newest token's query q_i of head i:

    o_i = softmax_j(q_i · R(distance_j) k_ij · scale) · [K_j | C_j]        [d + r]

and head i's output is o_i times that head's [d + r, dk] matrix, which is the caller's product. Source:
Graef et al., "Slim attention" (https://arxiv.org/abs/2503.05840), figure 3c, here with a residual.

`decode` runs a CUDA kernel (`slim_decode_source`) on Hopper (compute capability 9.0), and `plain` elsewhere:
the same sums in torch, to rounding. What the kernel does not take, it says once, in one line.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .nvrtc import Kernel, NoKernel, build, tensor_map
from .slim_decode_source import COMMON, DECODE, product
from .slim_rounding import LEAST_SHARE, blocks
from .slim_source import SOURCE

_log = logging.getLogger(__name__)
_TILE = 16
_THREADS = 512
_RING = 4
_SHARED = 227 * 1024
_FEW = 256  # tokens up to which a residual is made by its own kernel
_MOST = 64  # tokens up to which rounding errors are fed back by kernels; beyond, cuBLAS is the faster
_TAIL = 256  # channels of a block that is rounded in the last of these kernels
_TAIL_SHARED = _TAIL**2  # bytes; the weights of the halves that follow such a block take two thirds of it
_MATRIX_TILE = (16, 32)  # rows of a matrix and of the batch that a block of the thin products takes
_SUMS = 144  # accumulators per thread; more of them spill
_LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for."""

    heads: int
    size: int  # of a head
    residual: int
    dtype: torch.dtype
    rotary: bool


@dataclass(frozen=True)
class Layout:
    """How a shape lies on the card: blocks per cluster, tiles in flight, bytes of shared memory."""

    cluster: int
    keys: int  # blocks of 64 key columns per block of threads
    share: int  # residual columns, likewise
    stages: int
    shared: int
    sums: int  # numbers of all of a cluster's blocks


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "lengths", "starts", "freq", "turn", "slopes")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        *((name, ctypes.c_int) for name in ("window", "batch")),
        *((name, ctypes.c_void_p) for name in ("out", "part", "norm", "spans")),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_byte * 128) for name in ("k", "c")),
        ("codes", ctypes.c_void_p),
        ("codes_batch", ctypes.c_longlong),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("pages", "page_size")),
        ("pad", ctypes.c_int * 8),
    ]


class _Kernels(NamedTuple):
    step: Kernel
    combine: Kernel
    mix: Kernel
    rest: Kernel
    codes: Kernel
    move: Kernel
    tail: Kernel
    placed: Layout
    clusters: int  # of `step`, that run at once


class _Mix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("sums", "whole", "rows", "columns", "rest", "out")),
        *((name, ctypes.c_int) for name in ("batch", "values")),
    ]


class _Rest(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "primary", "weight", "part")),
        *((name, ctypes.c_longlong) for name in ("x_row", "primary_row")),
        *((name, ctypes.c_int) for name in ("batch", "width")),
    ]


class _Noise(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("left", "order", "weight", "scale", "out")),
        *((name, ctypes.c_int) for name in ("batch", "first", "size", "least")),
    ]


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    c: torch.Tensor | None,
    lengths: torch.Tensor,
    freq: torch.Tensor | None,
    *,
    scale: float,
    turn: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    cap: float = 0.0,
    window: int = 0,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """o [B, h, d + r] in float32 (float64 of float64): what is summed here meets large numbers next.

    Args:
        q: [B, h, dk] of the newest token; float16 or bfloat16 for the kernel.
        k: [B, slots, d], or [pages, slots per page, d] where there is a `table`; the last axis contiguous.
        c: [B, slots, r] likewise, or None; or in 8 bits, int8 [B, slots, r + 2]: the last two bytes are a
            bfloat16 scale.
        lengths: [B] int32, slots in use; the query's own token is in the last of them.
        freq: [dk/2] float32, radians per position; pairs are (i, i + dk/2). None: no rotary embedding.
        scale: of the scores.
        turn: [B, dk] float32, the dk/2 cosines and dk/2 sines that q was turned by already, times a scaling a
            of theirs, which then counts twice, as it does in the model. None: q is not turned yet.
        starts: [B] int32, first slot to read (left padding); None is 0.
        slopes: [h] float32, ALiBi: slope · distance is subtracted from the scores.
        cap: soft cap of the scores, 0 for none.
        window: read the newest `window` slots only, 0 for all.
        table: [B, pages] int32, which page holds which slots.
    """
    codes = c is not None and c.dtype == torch.int8
    rank = 0 if c is None else c.shape[2] - 2 * codes
    shape = Shape(q.shape[1], q.shape[2], rank, q.dtype, freq is not None)
    kernels = _kernels(shape, q.device)
    cache = None if kernels is None else _cache(k, c, table, kernels.placed)
    if kernels is None or cache is None:
        return plain(
            q,
            k,
            c,
            lengths,
            freq,
            scale=scale,
            turn=turn,
            starts=starts,
            slopes=slopes,
            cap=cap,
            window=window,
            table=table,
        )
    batch, width = q.shape[0], shape.heads * shape.size + shape.residual
    slots = k.shape[1] * (1 if table is None else table.shape[1])
    clusters = _clusters(batch, min(slots, window or slots), kernels.clusters)
    out = q.new_empty(batch, shape.heads, width, dtype=torch.float32)
    part = norm = None
    if clusters > 1:
        part = q.new_empty(2 * clusters, kernels.placed.sums, dtype=torch.float32)
        norm = q.new_empty(2 * clusters, shape.heads, 2, dtype=torch.float32)
    spans = q.new_empty(batch, 2, dtype=torch.int32)
    q = q.contiguous()
    scaled = None if slopes is None else slopes.float() * _LOG2E
    job = _Job(
        *map(_address, (q, lengths, starts, freq, turn, scaled)),
        scale * _LOG2E,
        cap * _LOG2E,
        window,
        batch,
        *map(_address, (out, part, norm, spans)),
    )
    kernels.step.launch((kernels.step.cluster, clusters, 1), job, cache)
    if part is not None and norm is not None:
        rows = -(-shape.heads // 8)
        grid = (-(-kernels.placed.sums // (256 * 4 * rows)), rows, batch)
        kernels.combine.launch(grid, part, norm, spans, out)
    return out


def _cache(
    k: torch.Tensor, c: torch.Tensor | None, table: torch.Tensor | None, placed: Layout
) -> _Cache | None:
    """Where [K | C] lies, for the kernel; None (said once) where the copy engine cannot read it."""
    codes = c if c is not None and c.dtype == torch.int8 else None
    blocks = k.unflatten(-1, (-1, 64)).transpose(1, 2)  # [batch or page, d / 64, slots, 64]
    if table is not None and k.shape[1] % _TILE:
        _say(f"pages of {k.shape[1]} slots; the slim kernel takes multiples of {_TILE}")
        return None
    made = [tensor_map(blocks, (1, placed.keys, 8, 64))]
    if c is not None and codes is None:
        made.append(tensor_map(c, (1, 8, 64)))
    if None in made or (codes is not None and (codes.stride(1) != codes.shape[2] or codes.data_ptr() % 2)):
        _say("a cache whose rows do not begin at multiples of 16 bytes")
        return None
    cache = _Cache(
        codes=_address(codes),
        table=_address(table),
        pages=0 if table is None else table.shape[1],
        page_size=k.shape[1],
    )
    if codes is not None:
        cache.codes_batch = codes.stride(0)
    for name, one in zip(("k", "c"), made, strict=False):
        setattr(cache, name, one)
    return cache


def plain(
    q: torch.Tensor,
    k: torch.Tensor,
    c: torch.Tensor | None,
    lengths: torch.Tensor,
    freq: torch.Tensor | None,
    *,
    scale: float,
    turn: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    cap: float = 0.0,
    window: int = 0,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """`decode` in torch, in float32 (float64 for float64), on any device."""
    if c is not None and c.dtype == torch.int8:
        scales = c[..., -2:].contiguous().view(torch.bfloat16)
        c = (c[..., :-2].float() * scales.float()).to(k.dtype)
    if table is not None:
        k = k[table.long()].flatten(1, 2)
        c = None if c is None else c[table.long()].flatten(1, 2)
    heads, size = q.shape[1:]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    slot = torch.arange(k.shape[1], device=q.device)
    distance = lengths[:, None] - 1 - slot  # [B, slots]
    keys = k.to(wide).unflatten(-1, (heads, size))
    query = q.to(wide)
    if turn is not None:
        cos, sin = turn.to(wide)[:, None].chunk(2, dim=-1)
        x, y = query.chunk(2, dim=-1)
        query = torch.cat([x * cos + y * sin, y * cos - x * sin], dim=-1)
    scores = turned_dot(query, keys, distance, freq) * scale  # [B, h, slots]
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if slopes is not None:
        scores = scores - slopes.to(wide)[:, None] * distance[:, None]
    seen = distance >= 0
    if starts is not None:
        seen = seen & (slot >= starts[:, None])
    if window:
        seen = seen & (distance < window)
    weights = torch.softmax(scores.masked_fill(~seen[:, None], -math.inf), dim=-1)
    rows = k.to(wide) if c is None else torch.cat([k, c], dim=-1).to(wide)
    return weights @ rows.masked_fill(~seen[..., None], 0)


def mix(
    sums: torch.Tensor,
    whole: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    rest: torch.Tensor | None,
    shape: Shape,
) -> torch.Tensor | None:
    """Every head's sums times its own matrix [A; B]: [B, h·dv] in the shape's dtype; None: no kernel for it.

    Args:
        sums: [B, h, d + r] float32, what `decode` gives.
        whole: int16 [h·dv, d], Aᵀ divided by its scales `rows` [h·dv] and `columns` [d] of the shape's dtype.
        rest: [2, h·dv, r] in the shape's dtype, Bᵀ in two parts.
    """
    kernels = _kernels(shape, sums.device)
    given = [x for x in (rows, columns, rest) if x is not None]
    if kernels is None or any(x.dtype != shape.dtype or x.data_ptr() % 16 for x in given):
        return None
    batch, values = sums.shape[0], whole.shape[0] // shape.heads
    out = sums.new_empty(batch, whole.shape[0], dtype=shape.dtype)
    job = _Mix(*map(_address, (sums, whole, rows, columns, rest, out)), batch, values)
    tall, many = _MATRIX_TILE
    kernels.mix.launch((-(-values // tall), shape.heads, -(-batch // many)), job)
    return out


def residual_codes(
    x: torch.Tensor, primary: torch.Tensor, weight: torch.Tensor, shape: Shape
) -> torch.Tensor | None:
    """C = [x | P]·Wᵀ of a few tokens in 8 bits, int8 [B, n, r + 2] (see `decode`); None: no kernel for it.

    Args:
        x: [B, n, width], the layer's input.
        primary: P [B, n, d], what is cached of it.
        weight: [2, r, width + d], W in two parts.
    """
    kernels = _kernels(shape, x.device)
    tokens, width = x.numel() // x.shape[-1], x.shape[-1]
    if kernels is None or not 0 < tokens <= _FEW or width % 8:
        return None
    rows = [side.reshape(tokens, side.shape[-1]) for side in (x, primary)]
    given = (*rows, weight)
    if any(a.dtype != shape.dtype or a.data_ptr() % 16 or a.stride(0) % 8 for a in given):
        return None
    tall, many = _MATRIX_TILE
    tiles = -(-shape.residual // tall)
    parts = max(1, min(128 // tiles, weight.shape[2] // 256))  # enough blocks to fill a card
    part = x.new_empty(parts, tokens, shape.residual, dtype=torch.float32)
    codes = x.new_empty(*x.shape[:-1], shape.residual + 2, dtype=torch.int8)
    strides = rows[0].stride(0), rows[1].stride(0)
    kernels.rest.launch(
        (tiles, parts, -(-tokens // many)), _Rest(*map(_address, (*given, part)), *strides, tokens, width)
    )
    kernels.codes.launch((tokens, 1, 1), part, codes, ctypes.c_int(parts))
    return codes


def feed_back(
    values: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
    scale: torch.Tensor | None,
    shape: Shape,
) -> torch.Tensor | None:
    """`slim_rounding.fed_back` of a few tokens in a handful of launches; None: no kernel for it.

    Sums in another order than torch's aside, the same numbers.

    Args:
        values: P [B, n, d] float32, overwritten with what is to be rounded of each channel.
        order, weights: int16 [d] and in the shape's dtype, see `fed_back`.
        scale: of 8-bit rows, float32 [B, n, 1]; None where P is rounded to the shape's dtype.

    Returns:
        Without `scale`, P rounded [B, n, d]; with it, `values`.
    """
    width = values.shape[-1]
    tokens = values.numel() // width
    if not 0 < tokens <= _MOST or width != shape.heads * shape.size:
        return None
    kernels = _kernels(shape, values.device)
    cuts = blocks(width)[:-1]
    fits = values.dtype == torch.float32 and values.is_contiguous() and order.dtype == torch.int16
    fits = fits and weights.dtype == shape.dtype and weights.data_ptr() % 16 == 0
    if kernels is None or not fits or not cuts or any((width - last) % 8 for _, last in cuts):
        return None
    out = None if scale is not None else values.new_empty(values.shape, dtype=shape.dtype)
    given, at = (_address(values), _address(order)), weights.data_ptr()
    after = (_address(scale), _address(out), tokens)
    for first, last in cuts:
        size, rest = last - first, width - last
        job = _Noise(*given, at, *after, first, size, max(1, width // LEAST_SHARE))
        if size <= _TAIL:
            kernels.tail.launch((tokens, 1, 1), job)
            break
        kernels.move.launch((-(-rest // 16), 1, -(-tokens // 4)), job)
        at += 2 * size * rest
    return values if out is None else out


def turned_dot(
    q: torch.Tensor, keys: torch.Tensor, distance: torch.Tensor, freq: torch.Tensor | None
) -> torch.Tensor:
    """q_i · R(distance)ᵀ k_ij: [B, h, slots] of q [B, h, dk], keys [B, slots, h, dk], distance [B, slots]."""
    if freq is None:
        return torch.einsum("bhi,bshi->bhs", q, keys)
    angle = distance[..., None].double() * freq.double()  # exact: 2^17 positions leave float32 8 bits
    cos, sin = angle.cos().to(q.dtype)[:, :, None], angle.sin().to(q.dtype)[:, :, None]
    x, y = keys.chunk(2, dim=-1)
    turned = torch.cat([x * cos + y * sin, y * cos - x * sin], dim=-1)
    return torch.einsum("bhi,bshi->bhs", q, turned)


def layout(shape: Shape) -> Layout:
    """The smallest cluster whose blocks hold their share of the sums and enough tiles.

    Raises:
        NoKernel: there is none.
    """
    if shape.dtype not in (torch.float16, torch.bfloat16):
        raise NoKernel(
            f"the slim kernel takes float16 and bfloat16, not {str(shape.dtype).removeprefix('torch.')}"
        )
    if shape.size % 16 or not 16 <= shape.size <= 256 or shape.residual % 8:
        raise NoKernel(f"the slim kernel takes heads of 16, 32, ... 256 numbers and r in eights, not {shape}")
    rows = -(-shape.heads // 8) * 8
    for cluster in (1, 2, 4, 8):
        heads = shape.heads // cluster
        if shape.heads % cluster or heads > 16 or heads * shape.size % 64:
            continue
        share = -(-shape.residual // (8 * cluster)) * 8
        keys = heads * shape.size // 64
        columns = keys + -(-share // 64)
        sums = (columns + 1) // 2 * rows // 2
        planes = 4 if heads <= 8 else 2
        stage = columns * _TILE * 128 + planes * heads * 80 + 3 * 8
        small = _RING * (rows * 40 + 2 * 8) + 16
        stages = min(12, (_SHARED - small) // stage)
        if sums <= _SUMS and stages >= 4:
            return Layout(cluster, keys, share, stages, small + stages * stage, cluster * columns * 64 * rows)
    raise NoKernel(f"the sums of {shape.heads} heads over {shape.heads * shape.size} columns fit no cluster")


def available(shape: Shape, device: torch.device) -> bool:
    """Whether `decode` has a kernel for this shape; where not, the reason is said once in one line."""
    return _kernels(shape, device) is not None


@functools.cache
def _kernels(shape: Shape, device: torch.device) -> _Kernels | None:
    """The compiled kernels and how many clusters run at once; None (said once) where there are none."""
    try:
        if device.type != "cuda" or torch.version.hip:
            raise NoKernel(f"no CUDA on {device}")
        if torch.cuda.get_device_capability(device) != (9, 0):
            raise NoKernel(f"{torch.cuda.get_device_name(device)} is no Hopper card")
        placed = layout(shape)
        with torch.cuda.device(device):
            built = build(
                source(shape, placed),
                {
                    "slim_decode": (_THREADS, placed.shared, placed.cluster),
                    "slim_combine": (256, 0, 1),
                    "slim_mix": (256, 0, 1),
                    "slim_rest": (256, 0, 1),
                    "slim_codes": (256, 0, 1),
                    "slim_move": (256, 0, 1),
                    "slim_tail": (512, _TAIL_SHARED, 1),
                },
            )
            step = built["slim_decode"]
            others = ("combine", "mix", "rest", "codes", "move", "tail")
            named = {name: built[f"slim_{name}"] for name in others}
            return _Kernels(step, **named, placed=placed, clusters=max(1, step.clusters()))
    except NoKernel as why:
        _say(str(why))
        return None


@functools.cache
def _say(why: str) -> None:
    _log.warning("slim attention decodes in plain torch: %s", why)


def source(shape: Shape, placed: Layout) -> str:
    """The kernels' text for one shape."""
    constants = {
        "HEADS": shape.heads,
        "DK": shape.size,
        "R": shape.residual,
        "RC": placed.share,
        "CL": placed.cluster,
        "STAGES": placed.stages,
    }
    lines = [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines += [f"#define BF16 {int(shape.dtype == torch.bfloat16)}", f"#define ROPE {int(shape.rotary)}"]
    kind = "bf16" if shape.dtype == torch.bfloat16 else "f16"
    wgmma = product(-(-shape.heads // 8) * 8, kind)
    return "\n".join(lines) + COMMON + wgmma + DECODE + SOURCE


def _clusters(batch: int, slots: int, most: int) -> int:
    """How many clusters share the batch's slots evenly: the least of a share and what pieces of rows cost."""
    combining = 3  # in tokens' time: writing and reading a piece's sums

    def cost(clusters: int) -> float:
        pieces = 2 * clusters if batch % clusters else 0
        return batch * slots / clusters + pieces * combining

    most = max(1, min(batch * slots // 64, most, 2**32 * _TILE // (batch * slots) - 1))
    return min(range(1, most + 1), key=cost)


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
