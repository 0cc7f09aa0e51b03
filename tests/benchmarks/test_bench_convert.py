"""The conversion benchmark: its model is a sound Llama, its verdicts on its own targets are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import random_llama
from benchmarks.convert import RESULTS, _figures, table
from benchmarks.memory import peak, resident
from benchmarks.same_weights import same_weights


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in {"HIDDEN": 64, "INNER": 96, "HEADS": 4, "VOCABULARY": 256}.items():
        monkeypatch.setattr(random_llama, name, value)
    random_llama.build(tmp_path / "model", layers=2)
    return tmp_path / "model"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def test_random_llama_holds_every_tensor_transformers_wants(small: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    held = {
        name: tuple(tensor.shape)
        for path in small.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert held == wanted
    assert index["metadata"]["total_size"] == 2 * sum(
        tensor.numel() for tensor in model.state_dict().values()
    )


def test_same_weights_sees_one_changed_value_and_not_the_layout(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "one-file"
    other.mkdir()
    tensors = {
        name: tensor for path in small.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    save_file(tensors, other / "model.safetensors")
    assert same_weights(small, other) == {"tensors": 21, "identical": 21, "largest_difference": 0.0}
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors")
    changed = same_weights(small, other)
    assert changed["identical"] == 20
    assert changed["largest_difference"] > 0.5


def test_memory_is_counted_in_bytes() -> None:
    assert 10_000_000 < resident() <= peak()


def _run(work: float, peak_rss: int) -> dict[str, float]:
    return {"work_s": work, "cpu_s": work, "import_s": 3.0, "import_rss": 400_000_000, "peak_rss": peak_rss}


@pytest.mark.parametrize(("work", "peak_rss", "met"), [(1.0, 420_000_000, True), (3.0, 900_000_000, False)])
def test_targets_are_judged_on_the_work_without_imports(work: float, peak_rss: int, met: bool) -> None:
    runs = {"cp": [_run(1.0, 0)], "tricksmith": [_run(work, peak_rss)], "flashify": [_run(20.0, 0)]}
    same = {"tensors": 1, "identical": 1, "largest_difference": 0.0}
    figures = _figures(runs, same, [{"weight_bytes": 10**9, **_run(work, peak_rss)}])
    assert {target["met"] for target in figures["targets"].values()} == {met}
    assert ("missed" in table(figures)) is not met


def test_committed_figures_are_of_a_gigabyte_and_of_one_run() -> None:
    if not RESULTS.exists():
        pytest.skip("no figures committed")
    figures = json.loads(RESULTS.read_text())
    assert figures["weight_bytes"] >= 1_000_000_000
    assert len({len(runs) for runs in figures["runs"].values()}) == 1
    assert figures["same_weights"]["tensors"] == 84
