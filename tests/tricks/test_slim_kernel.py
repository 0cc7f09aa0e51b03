"""The slim decode step: its torch path against a loop in float64, and who takes it."""

from __future__ import annotations

import math

import pytest
import torch

from tricks.shipped.nvrtc import NoKernel
from tricks.shipped.slim_kernel import Shape, _clusters, _say, decode, layout, source

HEADS, SIZE, REST = 3, 16, 8


def given(slots: int = 20) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q = torch.randn(2, HEADS, SIZE, dtype=torch.float64)
    k = torch.randn(2, slots, HEADS * SIZE, dtype=torch.float64)
    c = torch.randn(2, slots, REST, dtype=torch.float64)
    lengths = torch.tensor([slots, slots - 7], dtype=torch.int32)
    freq = 10000 ** (-torch.arange(0, SIZE, 2) / SIZE)
    return q, k, c, lengths, freq


def turned(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_a_step_is_rotary_attention_over_the_whole_row(window: int, cap: float) -> None:
    q, k, c, lengths, freq = given()
    starts = torch.tensor([3, 0], dtype=torch.int32)
    out = decode(q, k, c, lengths, freq, scale=0.3, starts=starts, window=window, cap=cap)
    for b in range(2):
        last = int(lengths[b])
        seen = range(max(int(starts[b]), last - window if window else 0), last)
        for h in range(HEADS):
            query = turned(q[b, h], (last - 1) * freq.double())
            keys = [turned(k[b, j, h * SIZE : (h + 1) * SIZE], j * freq.double()) for j in seen]
            scores = 0.3 * torch.stack([query @ key for key in keys])
            scores = cap * torch.tanh(scores / cap) if cap else scores
            expected = torch.softmax(scores, 0) @ torch.cat([k[b], c[b]], dim=-1)[list(seen)]
            torch.testing.assert_close(out[b, h], expected)


def test_a_query_may_come_turned() -> None:
    q, k, c, lengths, freq = given()
    angle = (lengths[:, None] + 6) * freq.double()  # positions need not begin at 0
    scaling = 1.2
    both = torch.stack([scaling * turned(q[b].T, angle[b][:, None]).T for b in range(2)])
    turn = scaling * torch.cat([angle.cos(), angle.sin()], -1)
    out = decode(both, k, c, lengths, freq, scale=0.3, turn=turn)
    torch.testing.assert_close(out, decode(q, k, c, lengths, freq, scale=0.3 * scaling**2))


def test_what_lies_behind_the_length_is_not_read() -> None:
    q, k, c, lengths, freq = given()
    before = decode(q, k, c, lengths, freq, scale=0.3)
    k[1, 13:], c[1, 13:] = math.nan, math.inf
    assert torch.equal(decode(q, k, c, lengths, freq, scale=0.3), before)


def test_pages_give_what_one_piece_gives() -> None:
    q, k, c, lengths, freq = given()
    order = torch.randperm(10)
    pages = [torch.empty_like(x.reshape(10, 4, -1)) for x in (k, c)]
    for page, x in zip(pages, (k, c), strict=True):
        page[order] = x.reshape(10, 4, -1)
    table = order.reshape(2, 5).int()
    paged = decode(q, *pages, lengths, freq, scale=0.3, table=table)
    torch.testing.assert_close(paged, decode(q, k, c, lengths, freq, scale=0.3))


def test_one_line_says_why_there_is_no_kernel(caplog: pytest.LogCaptureFixture) -> None:
    _say.cache_clear()
    q, k, c, lengths, freq = (x.float() if x.is_floating_point() else x for x in given(9))
    q, k = torch.randn(2, 5, SIZE), torch.randn(2, 9, 5 * SIZE)  # a shape no other test has asked for
    for _ in range(2):
        decode(q, k, c, lengths, freq, scale=0.3)
    assert [r.getMessage() for r in caplog.records] == [
        "slim attention decodes in plain torch: no CUDA on cpu"
    ]


@pytest.mark.parametrize(
    ("heads", "size", "residual", "cluster"),
    [
        (32, 128, 256, 4),
        (32, 96, 192, 4),
        (32, 64, 128, 2),
        (40, 128, 320, 8),
        (16, 256, 0, 4),
        (12, 64, 48, 1),
    ],
)
def test_known_geometries_fit_the_card(heads: int, size: int, residual: int, cluster: int) -> None:
    shape = Shape(heads, size, residual, torch.bfloat16, True)
    placed = layout(shape)
    assert placed.cluster == cluster
    assert placed.shared <= 227 * 1024
    assert f"constexpr int CL = {cluster};" in source(shape, placed)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(64, 128, 0, torch.bfloat16, True),
        Shape(32, 40, 0, torch.bfloat16, True),
        Shape(32, 128, 0, torch.float32, True),
    ],
)
def test_other_shapes_are_refused(shape: Shape) -> None:
    with pytest.raises(NoKernel):
        layout(shape)


@pytest.mark.parametrize("batch", [1, 3, 8, 30, 64])
@pytest.mark.parametrize("slots", [16, 2048, 131072])
def test_a_batch_is_shared_by_as_many_clusters_as_pay(batch: int, slots: int) -> None:
    chosen = _clusters(batch, slots, 30)
    assert 1 <= chosen <= 30
    assert chosen == 1 or batch * slots // chosen >= 64  # no cluster without a handful of tiles
    if batch * slots >= 1 << 17:
        assert chosen == 30


def test_heads_that_fill_no_blocks_of_columns_are_refused() -> None:
    assert layout(Shape(4, 48, 0, torch.bfloat16, True)).keys == 3
    with pytest.raises(NoKernel):
        layout(Shape(5, 48, 0, torch.bfloat16, True))
