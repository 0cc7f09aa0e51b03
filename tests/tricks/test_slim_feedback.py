"""Rounding whose error is fed back: what it costs, what it keeps, and that its noise is as foretold."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tricks.shipped.slim_rounding import blocks, fed_back, feedback_size
from tricks.slim_feedback import packed, shape_noise


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.round()


@given(st.integers(1, 600))
def test_blocks_cover_every_channel_once(count: int) -> None:
    found = blocks(count)
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == count
    assert feedback_size(count) <= count**2 / 2


def test_errors_go_where_they_cost_least_and_spread_as_foretold() -> None:
    """A cost with few large eigenvalues, as that of a key projection."""
    generator = torch.Generator().manual_seed(0)
    size, tokens = 64, 20000
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    cost = basis @ torch.diag(torch.logspace(4, -2, size).double()) @ basis.T
    values = 50 * torch.randn(tokens, size, generator=generator).double()
    variance, order = torch.full((size,), 1 / 12).double(), torch.randperm(size, generator=generator)
    weights, noise = shape_noise(cost, variance, order)
    kept = fed_back(values, order, packed(weights, order, None), whole, torch.matmul)
    assert torch.equal(kept, kept.round())
    error = kept - values
    found, nearest = (float(((e @ cost) * e).sum(-1).mean()) for e in (error, values.round() - values))
    assert found < nearest / 4
    assert abs(found / float((cost * noise).sum()) - 1) < 0.05


def test_scales_of_channels_change_nothing_but_the_units() -> None:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(24, 24, generator=generator).double()
    order, scales = torch.arange(24).flip(0), torch.rand(24, generator=generator).double() + 0.5
    weights, _ = shape_noise(root @ root.T, scales**2 / 12, order)
    values = 9 * torch.randn(50, 24, generator=generator).double()

    # Blocks come in the order of the channels: each is rounded to multiples of its own scales.
    places = iter(order.split([last - first for first, last in blocks(24)]))

    def by_scale(x: torch.Tensor) -> torch.Tensor:
        own = scales[next(places)]
        return (x / own).round() * own

    one = fed_back(values, order, packed(weights, order, None), by_scale, torch.matmul)
    other = fed_back(values / scales, order, packed(weights, order, scales), whole, torch.matmul) * scales
    torch.testing.assert_close(one, other)
