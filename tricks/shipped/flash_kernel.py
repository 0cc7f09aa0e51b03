"""FlashNorm for few tokens: RMSNorm without gain and the linear layer behind it, in one kernel.

    y = (x · Wᵀ) · s + bias,   s = 1/√(mean(x²) + ε)

The product reads all of x anyway, so each block of columns sums the squares on its way and scales its sums at
the end: there is no norm to wait for. Source: Graef et al., "FlashNorm" (https://arxiv.org/abs/2407.09577),
proposition 2. Beyond `MOST_TOKENS` norm and product stay two steps, the product cuBLAS's.
"""

from __future__ import annotations

import logging
from typing import Any

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
    def _kernel(
        x_at, w_at, bias_at, y_at, tokens, columns, eps,
        WIDTH: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        # Transposed, yᵀ = W · xᵀ: the columns fill the tensor cores' rows, however few the tokens are.
        row, column = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
        x_rows = x_at + tl.minimum(row, tokens - 1)[None, :] * WIDTH
        w_rows = w_at + tl.minimum(column, columns - 1)[:, None].to(tl.int64) * WIDTH
        sums = tl.zeros((BN, BM), dtype=tl.float32)
        squares = tl.zeros((BM,), dtype=tl.float32)
        for begin in range(0, WIDTH, BK):
            k = begin + tl.arange(0, BK)
            if EVEN:
                x = tl.load(x_rows + k[:, None])
                w = tl.load(w_rows + k[None, :])
            else:
                x = tl.load(x_rows + k[:, None], mask=k[:, None] < WIDTH, other=0.0)
                w = tl.load(w_rows + k[None, :], mask=k[None, :] < WIDTH, other=0.0)
            sums = tl.dot(w, x, sums)
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=0)
        y = sums * tl.rsqrt(squares / WIDTH + eps)[None, :]
        if BIAS:
            y += tl.load(bias_at + column, mask=column < columns, other=0.0).to(tl.float32)[:, None]
        at = y_at + row[None, :] * columns + column[:, None]
        tl.store(at, y.to(y_at.dtype.element_ty), mask=(row[None, :] < tokens) & (column[:, None] < columns))


def norm_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor | None:
    """RMSNorm(x) · weightᵀ + bias in x's dtype, or None where the caller's own two steps do better.

    Args:
        x: [..., n], not normalised; float16 or bfloat16 on a CUDA card, at most `MOST_TOKENS` rows.
        weight: [out, n], rows contiguous.
    """
    tokens = x.numel() // x.shape[-1]
    if not x.is_cuda or tokens > MOST_TOKENS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if (
        x.dtype not in (torch.float16, torch.bfloat16)
        or weight.dtype != x.dtype
        or not weight.is_contiguous()
    ):
        return None
    if triton is None:
        _say("no Triton")
    if _said:
        return None
    try:
        return launch(x, weight, bias, eps, *blocks(weight.shape[1]))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a card too old, no C compiler: Triton has many words for it
        _say(f"Triton does not compile the kernel ({str(error).strip().splitlines()[-1][:120]})")
        return None


def blocks(width: int) -> tuple[int, int, int, int]:
    """Tile of columns, of the width; warps; stages of the pipeline. Found by trying on an H200.

    Not eight warps: with two warp groups reading one tile of x, Triton 3.6 gave wrong sums.
    """
    return (64, 256, 4, 4) if width % 256 == 0 else (64, 64, 4, 5)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    columns: int,
    width: int,
    warps: int,
    stages: int,
) -> torch.Tensor:
    """The kernel with given tiles, on any device that Triton has."""
    flat = x.reshape(-1, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    grid = (triton.cdiv(weight.shape[0], columns),)
    kernel: Any = _kernel
    kernel[grid](
        flat, weight, bias, y, flat.shape[0], weight.shape[0], eps,
        WIDTH=flat.shape[1], BIAS=bias is not None, EVEN=flat.shape[1] % width == 0,
        BM=MOST_TOKENS, BN=columns, BK=width, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


_said: list[str] = []


def _say(why: str) -> None:
    if not _said:
        _said.append(why)
        _log.warning("FlashNorm runs in plain torch: %s", why)
