"""The attentions that slim is held against: those that run here are timed, the others are no baseline."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from benchmarks.gpu import baselines


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_what_a_machine_refuses_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "FLEX", baselines.Flex(0))
    took = baselines.baselines(2, 4, 64, 16)
    assert list(took) == ["sdpa flash"]
    assert took["sdpa flash"] > 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in said] == ["sdpa cudnn", "sdpa efficient"]


def test_flex_attention_is_compiled_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    flex = baselines.Flex(1000)

    def compiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shapes.append(k.shape)
        return functional.scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(flex, "_compiled", compiled)
    q, k, longer = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 9, 16), torch.randn(2, 3, 12, 16)
    call = flex(q, k, k)
    assert call is not None
    torch.testing.assert_close(call(), functional.scaled_dot_product_attention(q, k, k))
    before = len(shapes)
    assert flex(q, longer, longer) is not None  # a context is nothing to compile for
    assert len(shapes) == before
    assert flex(q[..., :8], k[..., :8], k[..., :8]) is not None
    assert shapes[before:] == [(2, 3, 9, 8)]
    flex.left = 0.0
    assert flex(q[:1], k[:1], k[:1]) is None
