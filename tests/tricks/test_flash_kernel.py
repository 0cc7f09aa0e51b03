"""The fused norm and product, through Triton's interpreter on the CPU, against float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

CHECK = """
import torch
from tricks.shipped.flash_kernel import Tiles, launch, tiles
others = Tiles(1, 4, 64, 1, 1), Tiles(8, 16, 64, 2, 3), Tiles(16, 32, 128, 2, 4)
for tokens, columns, width in ((1, 40, 96), (16, 70, 200), (5, 33, 256)):
    x = torch.randn(tokens, width).half()
    weight, bias = torch.randn(columns, width).half(), torch.randn(columns).half()
    for cut in (tiles(tokens, columns, width), *(cut for cut in others if cut.rows >= tokens)):
        for offset in (None, bias):
            y = launch(x, weight, offset, 1e-5, cut)
            wide = x.double()
            exact = torch.nn.functional.rms_norm(wide, (width,), eps=1e-5) @ weight.double().T
            exact = exact if offset is None else exact + offset.double()
            error = (y.double() - exact).norm() / exact.norm()
            assert error < 4e-3, (tokens, cut, error)
print("fine")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_is_norm_and_product() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stderr
