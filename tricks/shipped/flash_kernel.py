"""FlashNorm for few tokens: RMSNorm without gain and the linear layer behind it, in one kernel.

    y = (x · Wᵀ) · s + bias,   s = 1/√(mean(x²) + ε)

The product reads all of x anyway, so each block of columns sums the squares on its way and scales its sums at
the end: there is no norm to wait for. Source: Graef et al., "FlashNorm" (https://arxiv.org/abs/2407.09577),
proposition 2. Beyond `MOST_TOKENS` norm and product stay two steps, the product cuBLAS's.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch

_log = logging.getLogger(__name__)
MOST_TOKENS = 16

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

if triton is not None:

    @triton.jit
    def _several(
        x_at, w_at, bias_at, y_at, tokens, columns, eps,
        WIDTH: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        # Transposed, yᵀ = W · xᵀ: the columns fill the tensor cores' rows, however few the tokens are.
        row, column = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
        x_rows, there = x_at + row[None, :] * WIDTH, row[None, :] < tokens
        w_rows = w_at + tl.minimum(column, columns - 1)[:, None].to(tl.int64) * WIDTH
        sums = tl.zeros((BN, BM), dtype=tl.float32)
        squares = tl.zeros((BM,), dtype=tl.float32)
        for begin in range(0, WIDTH, BK):
            k = begin + tl.arange(0, BK)
            if EVEN:
                x = tl.load(x_rows + k[:, None], mask=there, other=0.0)
                w = tl.load(w_rows + k[None, :], eviction_policy="evict_first")
            else:
                x = tl.load(x_rows + k[:, None], mask=there & (k[:, None] < WIDTH), other=0.0)
                w = tl.load(w_rows + k[None, :], mask=k[None, :] < WIDTH, other=0.0)
            sums = tl.dot(w, x, sums)
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=0)
        y = sums * tl.rsqrt(squares / WIDTH + eps)[None, :]
        if BIAS:
            y += tl.load(bias_at + column, mask=column < columns, other=0.0).to(tl.float32)[:, None]
        at = y_at + row[None, :] * columns + column[:, None]
        tl.store(at, y.to(y_at.dtype.element_ty), mask=(row[None, :] < tokens) & (column[:, None] < columns))

    @triton.jit
    def _one(
        x_at, w_at, bias_at, y_at, tokens, columns, eps,
        WIDTH: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        # Nothing for tensor cores to do: every load of a piece of W is under way before the first is used.
        column = tl.program_id(0) * BN + tl.arange(0, BN)
        w_rows = w_at + tl.minimum(column, columns - 1)[:, None].to(tl.int64) * WIDTH
        sums = tl.zeros((BN,), dtype=tl.float32)
        squares = tl.zeros((BK,), dtype=tl.float32)
        for begin in tl.static_range(0, WIDTH, BK):
            k = begin + tl.arange(0, BK)
            if EVEN:
                w = tl.load(w_rows + k[None, :], eviction_policy="evict_first")
                x = tl.load(x_at + k)
            else:
                w = tl.load(w_rows + k[None, :], mask=k[None, :] < WIDTH, other=0.0)
                x = tl.load(x_at + k, mask=k < WIDTH, other=0.0)
            wide = x.to(tl.float32)
            sums += tl.sum(w.to(tl.float32) * wide[None, :], axis=1)
            squares += wide * wide
        y = sums * tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        if BIAS:
            y += tl.load(bias_at + column, mask=column < columns, other=0.0).to(tl.float32)
        tl.store(y_at + column, y.to(y_at.dtype.element_ty), mask=column < columns)


class Tiles(NamedTuple):
    """How a kernel is cut.

    Args:
        rows: of x that a program takes, 1, 8 or 16; with 1 the product is made without tensor cores.
        columns, width: of W that a program takes at a time.
        stages: of the pipeline.
    """

    rows: int
    columns: int
    width: int
    warps: int
    stages: int


def norm_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor | None:
    """RMSNorm(x) · weightᵀ + bias in x's dtype, or None where the caller's own two steps do better.

    Args:
        x: [..., n], not normalised; float16 or bfloat16 on a CUDA card, at most `MOST_TOKENS` rows.
        weight: [out, n], rows contiguous.
    """
    tokens = x.numel() // x.shape[-1]
    if not 0 < tokens <= MOST_TOKENS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if (why := refusal(x.device, x.dtype)) is not None:
        _say(why)
        return None
    if weight.dtype != x.dtype or not weight.is_contiguous():
        return None
    try:
        return launch(x, weight, bias, eps, tiles(tokens, *weight.shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - no C compiler, a card too old: Triton has many words for it
        last = (str(error).strip() or type(error).__name__).splitlines()[-1][:120]
        _failed[x.device] = f"Triton does not compile the kernel ({last})"
        _say(_failed[x.device])
        return None


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel runs there, or None."""
    return _failed.get(device) or _refusal(device, dtype)


@functools.cache
def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" or torch.version.hip:
        return f"no CUDA on {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the kernel takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return "no Triton" if triton is None else None


_failed: dict[torch.device, str] = {}


def tiles(tokens: int, columns: int, width: int) -> Tiles:
    """The tiles for a product of these sizes, the best of `benchmarks.gpu.flash_sweep` on an H200.

    No tiles of 128 columns, no eight warps: Triton 3.6 made sums of them that were wrong, now and then.
    """
    if tokens == 1:
        return Tiles(1, 1, min(4096, 1 << (width - 1).bit_length()), 2, 1)
    if width % 128 or columns > 16384:
        return Tiles(16, 64, 64, 4, 6)
    return Tiles(16, 64, 128, 4, 4)


def launch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, cut: Tiles
) -> torch.Tensor:
    """The kernel with given tiles, on any device that Triton has."""
    flat = x.reshape(-1, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    grid = (triton.cdiv(weight.shape[0], cut.columns),)
    kernel: Any = _one if cut.rows == 1 else _several
    kernel[grid](
        flat, weight, bias, y, flat.shape[0], weight.shape[0], eps,
        WIDTH=flat.shape[1], BIAS=bias is not None, EVEN=flat.shape[1] % cut.width == 0,
        BM=cut.rows, BN=cut.columns, BK=cut.width, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return y


@functools.cache
def _say(why: str) -> None:
    _log.warning("FlashNorm runs in plain torch: %s", why)
