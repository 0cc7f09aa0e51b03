"""Streaming conversion: what is touched is rounded once, what is not is copied byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tricks.small_models import save_model
from tricks import BadInput, Cancelled, Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.edits import Fill, Scale, Shift

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


def plan_for(source: Path) -> Plan:
    return make_plan(read_checkpoint(source), [parse_trick("flashnorm")])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(plan_for(TINY), TINY, out)
    return out


def test_layout_headers_and_companions_are_the_sources_own(converted: Path) -> None:
    for shard in sorted(TINY.glob("*.safetensors")):
        with safe_open(shard, "pt") as a, safe_open(converted / shard.name, "pt") as b:
            assert list(a.keys()) == list(b.keys())
            assert a.metadata() == b.metadata()
    before, after = (json.loads((folder / "config.json").read_bytes()) for folder in (TINY, converted))
    assert after == before | {"flashnorm_folded": True, "flash_norm": True}
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        assert (TINY / name).read_bytes() == (converted / name).read_bytes()


def test_untouched_tensors_keep_their_bytes_and_touched_ones_are_rounded_once(converted: Path) -> None:
    before, after = tensors(TINY), tensors(converted)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(before[name], after[name])
    gain = before["model.layers.2.input_layernorm.weight"].double()
    for part in ("q", "k", "v"):
        name = f"model.layers.2.self_attn.{part}_proj.weight"
        assert torch.equal(after[name], (before[name].double() * gain).to(torch.bfloat16))
        assert after[name].dtype is torch.bfloat16


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    import hashlib

    result = convert(plan_for(TINY), TINY, tmp_path / "out")
    assert set(result.files) == {p.name for p in (tmp_path / "out").iterdir()}
    for name, digest in result.files.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    convert(plan_for(TINY), TINY, tmp_path / "out", lambda *step: seen.append(step))
    assert seen[0][1] == 0
    assert seen[-1] == ("bytes", seen[-1][2], seen[-1][2])
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    def stop(unit: str, done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        convert(plan_for(TINY), TINY, tmp_path / "out", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tricks import *\n"
        "s, o = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "p = make_plan(read_checkpoint(s), [parse_trick('flashnorm')])\n"
        "def slow(u, d, t):\n    print(d, flush=True); time.sleep(0.2)\n"
        "convert(p, s, o, slow)\n"
    )
    command = [sys.executable, "-c", script, str(TINY), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=TINY.parents[1], env={**os.environ}
    ) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert all(p.name.endswith(".partial") for p in tmp_path.iterdir())


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        convert(plan_for(TINY), TINY, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gain_that_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    name = "model.layers.1.input_layernorm.weight"
    for shard in source.glob("*.safetensors"):
        content = load_file(shard)
        if name in content:
            content[name][3] = bad
            save_file(content, shard, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"layers\.1\.input_layernorm\.weight holds NaN or Inf"):
        convert(plan_for(source), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fold_that_overflows_float16_is_refused(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", dtype=torch.float16)
    for shard in source.glob("*.safetensors"):
        content = load_file(shard)
        for name in content:
            if name.endswith("input_layernorm.weight"):
                content[name].fill_(60000)
            if name.endswith("q_proj.weight"):
                content[name].fill_(2)
        save_file(content, shard, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="overflow float16"):
        convert(plan_for(source), source, tmp_path / "out")


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.sampled_from(
    [((5, 7), 1), ((7, 5), 0), ((7,), 0), ((2, 3, 7), 2), ((2, 7, 3), 1), ((7, 2, 3), 0)]
)


@settings(max_examples=100, deadline=None)
@given(DTYPES, DTYPES, st.sampled_from([0.0, 1.0]), st.integers(0, 10**6), SHAPES)
def test_scaling_rounds_exactly_once(
    stored: torch.dtype, gains: torch.dtype, offset: float, seed: int, place: tuple[tuple[int, ...], int]
) -> None:
    shape, axis = place
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(stored)
    gain = (torch.randn(7, generator=generator, dtype=torch.float64) * 2).to(gains)
    bias = torch.randn(
        [s for i, s in enumerate(shape) if i != axis], generator=generator, dtype=torch.float64
    )
    edits = (Shift("b", "w", axis, "g"), Scale("w", axis, "g", offset), Fill("g", 1.0 - offset))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        source.mkdir()
        (source / "config.json").write_text("{}")
        save_file({"w": weight, "g": gain, "b": bias}, source / "model.safetensors")
        plan = Plan("m", "M", (), (), edits)
        convert(plan, source, out)
        result = load_file(out / "model.safetensors")
    along = (offset + gain.double()).view([-1 if i == axis else 1 for i in range(len(shape))])
    assert torch.equal(result["w"], (weight.double() * along).to(stored))
    shifted = bias + torch.tensordot(weight.double(), gain.double(), dims=([axis], [0]))
    assert torch.allclose(result["b"], shifted, rtol=1e-12, atol=1e-12)
    assert torch.equal(result["g"], torch.full_like(gain, 1.0 - offset))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB, half of what the model needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(BadInput, match=r"disk of .* is full; free 0\.01 GB"):
        convert(plan_for(TINY), TINY, small_disk / "out")
    assert list(small_disk.iterdir()) == []
