"""The thin kernels of the slim step, compiled for the CPU and run there, against float64 and torch."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tricks.shipped import slim_kernel
from tricks.shipped.modeling_slim import moved, to_bytes
from tricks.shipped.slim_kernel import Shape, _Mix, _Rest, feed_back
from tricks.shipped.slim_rounding import fed_back, feedback_size, row_scale, whole_numbers
from tricks.shipped.slim_source import SOURCE

HEADS, SIZE, REST, WIDTH = 2, 40, 24, 72
D = HEADS * SIZE
_TAIL = """
extern "C" void run_mix(Mix mix, int x, int y, int z) { launch({x, y, z}, INNER, [&] { slim_mix(mix); }); }
extern "C" void run_rest(Rest rest, int x, int y, int z) {
  launch({x, y, z}, INNER, [&] { slim_rest(rest); });
}
extern "C" void run_codes(const float* part, unsigned char* out, int parts, int tokens) {
  launch({tokens, 1, 1}, INNER, [&] { slim_codes(part, out, parts); });
}
extern "C" void run_move(Noise noise, int x, int z) { launch({x, 1, z}, INNER, [&] { slim_move(noise); }); }
extern "C" void run_tail(Noise noise) { launch({noise.batch, 1, 1}, TAIL, [&] { slim_tail(noise); }); }
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory, HEADS, SIZE)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory, 8, 128)


def compiled(tmp_path_factory: pytest.TempPathFactory, heads: int, size: int) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the CPU")
    folder = tmp_path_factory.mktemp("emulated")
    text = SOURCE[SOURCE.index("// --- few tokens times many rows") :]
    # What needs the card's own instructions is in emulated.h.
    for name in ("u32 pack_bf", "void mma_bf", "void prefetch", "void copy8", "void copied"):
        text = re.sub(rf"__device__ __forceinline__ {name}\(.*?\}}\n(?=\S|\n)", "", text, flags=re.DOTALL)
    text = text.replace(
        "extern __shared__ __align__(16) u16 later[];", "alignas(16) static u16 later[1 << 15];"
    )
    d = heads * size
    constants = {"HEADS": heads, "DK": size, "R": REST, "D": d, "DR": d + REST}
    head = [f'#include "{Path(__file__).parent / "emulated.h"}"', "#define BF16 1"]
    head += ["typedef unsigned short u16;", "typedef unsigned int u32;"]
    head += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    head += ["inline float low(u32 x) { return __uint_as_float(x << 16); }"]
    head += ["inline float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }"]
    head += ["inline u32 pack(float lo, float hi) { return pack_bf(lo, hi); }"]
    (folder / "thin.cpp").write_text("\n".join(head) + "\n" + text + _TAIL)
    command = [compiler, "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", "-o", "thin.so", "thin.cpp"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "thin.so"))


def test_the_heads_matrices_are_multiplied_to_rounding(kernels: ctypes.CDLL) -> None:
    torch.manual_seed(0)
    batch, values = 11, SIZE
    sums = torch.randn(batch, HEADS, D + REST)
    whole = torch.randint(-32768, 32768, (HEADS * values, D), dtype=torch.int16)
    rows, columns = (2.0 ** torch.randint(-8, 0, (n,)) for n in (HEADS * values, D))
    rows, columns = rows.bfloat16() / 256, columns.bfloat16()
    rest = torch.randn(2, HEADS * values, REST).bfloat16()
    out = torch.full((batch, HEADS * values), torch.nan, dtype=torch.bfloat16)
    job = _Mix(*(x.data_ptr() for x in (sums, whole, rows, columns, rest, out)), batch, values)
    kernels.run_mix(job, -(-values // 16), HEADS, 1)
    left = whole.double() * rows.double()[:, None] * columns.double()
    matrix = torch.cat([left, rest.double().sum(0)], 1).view(HEADS, values, -1)
    exact = torch.einsum("bhe,hve->bhv", sums.double(), matrix).flatten(1)
    assert (out == exact.bfloat16()).double().mean() > 0.99
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)


def test_new_tokens_residuals_have_torchs_bytes(kernels: ctypes.CDLL) -> None:
    torch.manual_seed(1)
    tokens, parts = 9, 2
    x = torch.randn(tokens, WIDTH).bfloat16()
    fused = torch.randn(tokens, D + 16).bfloat16()  # what is cached is a slice of a wider product
    primary = fused[:, 8 : 8 + D]
    x[3], fused[3] = 0, 0
    x[5, 7] = torch.nan
    weight = torch.randn(2, REST, WIDTH + D).bfloat16() / 64
    weight[1] /= 256
    part = torch.full((parts, tokens, REST), torch.nan)
    addresses = [a.data_ptr() for a in (x, primary, weight, part)]
    job = _Rest(*addresses, x.stride(0), fused.stride(0), tokens, WIDTH)
    kernels.run_rest(job, -(-REST // 16), parts, 1)
    exact = torch.cat([x, primary], 1).double() @ weight.double().sum(0).T
    torch.testing.assert_close(part.sum(0).double(), exact, rtol=1e-4, atol=1e-5, equal_nan=True)
    codes = torch.zeros(tokens, REST + 2, dtype=torch.int8)
    kernels.run_codes(*(ctypes.c_void_p(a.data_ptr()) for a in (part, codes)), parts, tokens)
    expected = to_bytes(part.sum(0))
    whole = [n for n in range(tokens) if n != 5]
    assert torch.equal(codes[whole], expected[whole])
    assert codes[5, REST:].view(torch.bfloat16).isnan().all()


class Emulated:
    """Stands where a compiled kernel does; a launch runs it on the CPU."""

    def __init__(self, run: Callable[[tuple[int, int, int], ctypes.Structure], None]) -> None:
        self.launch = run


@pytest.mark.parametrize("in_bytes", [False, True])
def test_rounding_errors_are_fed_back_as_torch_does(
    in_bytes: bool, wide: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, tokens = 1024, 5
    torch.manual_seed(2)
    values = torch.randn(tokens, 1, width) * torch.rand(width).exp()
    order = torch.randperm(width).to(torch.int16)
    weights = (torch.randn(feedback_size(width)) / 8).bfloat16()
    scale = row_scale(values).float() if in_bytes else None

    def rounded(piece: torch.Tensor) -> torch.Tensor:
        return piece.bfloat16() if scale is None else whole_numbers(piece, scale) * scale

    launched: list[str] = []

    def move(grid: tuple[int, int, int], job: ctypes.Structure) -> None:
        launched.append("move")
        wide.run_move(job, grid[0], grid[2])

    def tail(grid: tuple[int, int, int], job: ctypes.Structure) -> None:
        launched.append("tail")
        wide.run_tail(job)

    kernels = SimpleNamespace(move=Emulated(move), tail=Emulated(tail))
    monkeypatch.setattr(slim_kernel, "_kernels", lambda shape, device: kernels)
    expected = fed_back(values, order.long(), weights, rounded, moved)
    out = feed_back(values.clone(), order, weights, scale, Shape(8, 128, REST, torch.bfloat16, True))
    assert out is not None
    assert launched == ["move", "tail"]
    out = rounded(out)
    # Sums in another order move a number over the edge of its rounding now and then, and what comes after it.
    assert (out == expected).double().mean() > 0.9
    plain = (rounded(values) - values).norm()
    assert (out - expected).float().norm() < 0.3 * plain


def test_widths_that_do_not_halve_well_keep_to_torch() -> None:
    shape = Shape(2, 40, REST, torch.bfloat16, True)
    weights = torch.zeros(feedback_size(D), dtype=torch.bfloat16)
    assert feed_back(torch.zeros(1, 1, D), torch.arange(D).short(), weights, None, shape) is None
