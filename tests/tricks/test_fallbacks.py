"""Machines and shapes that the kernels do not take: plain torch's result, and one line that says why.

No card is needed: what torch says of one is patched, and what follows from it is the kernels' own doing.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import pytest
import torch
from torch import nn

from tricks.shipped import flash_kernel, nvrtc, slim_kernel
from tricks.shipped.modeling_flashnorm import install

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has both kernels believe that the tensors at hand are on a card of this name and capability."""
    remembered = (
        slim_kernel._kernels,
        slim_kernel._say,
        flash_kernel._refusal,
        flash_kernel._say,
        nvrtc._nvrtc,
    )
    for one in remembered:
        one.cache_clear()
    monkeypatch.setattr(flash_kernel, "_failed", {})

    def pretend(name: str, *capability: int) -> None:
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *given: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *given: name)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        kernels, refusal = slim_kernel._kernels, flash_kernel._refusal
        monkeypatch.setattr(slim_kernel, "_kernels", lambda shape, device: kernels(shape, CARD))
        monkeypatch.setattr(flash_kernel, "_refusal", lambda device, dtype: refusal(CARD, dtype))

    yield pretend
    monkeypatch.undo()
    for one in remembered:
        one.cache_clear()


def no_library(*given: Any, **options: Any) -> ctypes.CDLL:
    raise OSError("no such file")


def decoded_twice(heads: int, size: int, rank: int, dtype: torch.dtype) -> None:
    """Two steps of random slim attention; both are plain torch's, bit for bit."""
    torch.manual_seed(0)
    q = torch.randn(2, heads, size).to(dtype)
    k, c = torch.randn(2, 9, heads * size).to(dtype), torch.randn(2, 9, rank).to(dtype)
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    freq = 10000 ** (-torch.arange(0, size, 2) / size)
    expected = slim_kernel.plain(q, k, c, lengths, freq, scale=0.2)
    for _ in range(2):
        assert torch.equal(slim_kernel.decode(q, k, c, lengths, freq, scale=0.2), expected)


@pytest.mark.parametrize(
    ("heads", "size", "rank", "dtype", "why"),
    [
        (64, 128, 8, torch.bfloat16, "the sums of 64 heads over 8192 columns fit no cluster"),
        (4, 40, 8, torch.float16, "the slim kernel takes heads of 16, 32, ... 256 numbers and r in eights"),
        (4, 32, 12, torch.bfloat16, "the slim kernel takes heads of 16, 32, ... 256 numbers and r in eights"),
        (4, 32, 8, torch.float32, "the slim kernel takes float16 and bfloat16, not float32"),
    ],
)
def test_shapes_out_of_range(
    card: Any, caplog: pytest.LogCaptureFixture, heads: int, size: int, rank: int, dtype: Any, why: str
) -> None:
    card("NVIDIA H100", 9, 0)
    decoded_twice(heads, size, rank, dtype)
    (line,) = caplog.messages
    assert line.startswith(f"slim attention decodes in plain torch: {why}")
    assert "\n" not in line


def test_a_card_that_is_no_hopper_decodes_in_plain_torch(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    card("NVIDIA A100", 8, 0)
    decoded_twice(4, 32, 8, torch.bfloat16)
    assert caplog.messages == ["slim attention decodes in plain torch: NVIDIA A100 is no Hopper card"]


def test_without_nvrtc_slim_decodes_in_plain_torch(
    card: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card("NVIDIA H100", 9, 0)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    decoded_twice(4, 32, 8, torch.bfloat16)
    assert caplog.messages == ["slim attention decodes in plain torch: torch brings no NVRTC along"]


def test_a_build_for_other_cards_is_no_cuda(
    card: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card("AMD Instinct MI300X", 9, 4)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    decoded_twice(4, 32, 8, torch.bfloat16)
    normed_twice(torch.bfloat16)
    assert caplog.messages == [
        "slim attention decodes in plain torch: no CUDA on cuda:0",
        "FlashNorm runs in plain torch: no CUDA on cuda:0",
    ]


@torch.no_grad()
def normed_twice(dtype: torch.dtype) -> None:
    """A deferred norm and its linear layer, twice; both are norm and product in plain torch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.RMSNorm(64, eps=1e-6), nn.Linear(64, 8)).to(dtype)
    x = torch.randn(3, 64).to(dtype)
    expected = model(x)
    install(model, {"deferred": [{"at": "0", "eps": 1e-6}], "linears": [{"at": "1", "norm": "0"}]})
    for _ in range(2):
        torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.02)


def test_flashnorm_without_a_card(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    normed_twice(torch.bfloat16)
    assert caplog.messages == ["FlashNorm runs in plain torch: no CUDA on cpu"]


def test_flashnorm_on_a_card_older_than_ampere(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    card("Tesla T4", 7, 5)
    normed_twice(torch.float16)
    assert caplog.messages == ["FlashNorm runs in plain torch: Tesla T4 is older than Ampere"]


def test_flashnorm_in_float32(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    card("NVIDIA H100", 9, 0)
    normed_twice(torch.float32)
    assert caplog.messages == [
        "FlashNorm runs in plain torch: the kernel takes float16 and bfloat16, not float32"
    ]


def test_flashnorm_without_triton(
    card: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card("NVIDIA H100", 9, 0)
    monkeypatch.setattr(flash_kernel, "triton", None)
    normed_twice(torch.bfloat16)
    assert caplog.messages == ["FlashNorm runs in plain torch: no Triton"]


def test_flashnorm_where_triton_finds_no_compiler(
    card: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card("NVIDIA H100", 9, 0)
    tried = []

    def launch(*given: Any) -> torch.Tensor:
        tried.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(flash_kernel, "triton", flash_kernel.triton or object())
    monkeypatch.setattr(flash_kernel, "launch", launch)
    normed_twice(torch.bfloat16)
    assert len(tried) == 1
    (line,) = caplog.messages
    assert line.startswith(
        "FlashNorm runs in plain torch: Triton does not compile the kernel (Failed to find C"
    )


def test_a_batch_that_is_too_large_is_no_reason_for_a_line(
    caplog: pytest.LogCaptureFixture, card: Any
) -> None:
    with torch.no_grad():
        x = torch.randn(flash_kernel.MOST_TOKENS + 1, 8).bfloat16()
        assert flash_kernel.norm_linear(x, torch.randn(4, 8).bfloat16(), None, 1e-6) is None
    assert not caplog.messages
