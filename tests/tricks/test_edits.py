"""Edits in order: each sees what the ones before it left, and files, headers and index follow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tricks import BadInput, Plan, convert
from tricks.edits import Center, Drop, Edit, Fill, Make, New, Scale, Shift, edit_from_json, edit_to_json
from tricks.operations import OPERATIONS, Result, Value, operation, whole


@operation("test.product")
def product(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    a, b = whole(inputs["a"]), whole(inputs["b"])

    def rows() -> Iterator[torch.Tensor]:
        yield from (options["by"] * (a @ b)).split(3)

    return {"whole": a @ b, "rows": rows}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shards = {
        "model-00001-of-00002.safetensors": {
            "a": torch.randn(7, 5, generator=generator).bfloat16(),
            "g": torch.randn(5, generator=generator).bfloat16(),
        },
        "model-00002-of-00002.safetensors": {
            "b": torch.randn(5, 4, generator=generator),
            "bias": torch.randn(7, generator=generator),
        },
    }
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama", "kept": {"a": 1}}')
    return folder


def run(source: Path, *edits: Edit, **fields: Any) -> dict[str, torch.Tensor]:
    out = source.parent / "out"
    again = tuple(edit_from_json(json.loads(json.dumps(edit_to_json(edit)))) for edit in edits)
    assert again == edits
    convert(Plan("m", "M", (), (), again, **fields), source, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in sorted(out.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert index.pop(name) == file.name
            found[name] = tensor
    assert not index
    return found


def stored(source: Path) -> dict[str, torch.Tensor]:
    return {k: v.double() for f in source.glob("*.safetensors") for k, v in load_file(f).items()}


def test_made_tensors_see_earlier_edits_unrounded(source: Path) -> None:
    before = stored(source)
    product = {"whole": New("ab", "BF16", (7, 4)), "rows": New("ab3", "F64", (7, 4))}
    after = run(
        source, Scale("a", 1, "g", 1.0), Make("test.product", {"a": "a", "b": "b"}, product, {"by": 3})
    )
    exact = (before["a"] * (1 + before["g"])) @ before["b"]
    assert torch.equal(after["ab3"], 3 * exact)
    assert torch.equal(after["ab"], exact.to(torch.bfloat16))
    assert torch.equal(after["a"], (before["a"] * (1 + before["g"])).to(torch.bfloat16))


def test_a_made_tensor_can_take_an_old_ones_place_and_be_scaled_on(source: Path) -> None:
    before = stored(source)
    edits = (
        Make("test.product", {"a": "a", "b": "b"}, {"whole": New("a", "F32", (7, 4))}, {"by": 1}),
        Fill("g", 2.0),
        Drop("b"),
    )
    after = run(source, *edits)
    assert sorted(after) == ["a", "bias", "g"]
    assert torch.equal(after["a"], (before["a"] @ before["b"]).float())
    assert torch.equal(after["g"].double(), torch.full((5,), 2.0).double())


def test_a_dropped_tensor_leaves_header_index_and_empty_files(source: Path) -> None:
    after = run(source, Drop("b"), Drop("bias"))
    assert sorted(after) == ["a", "g"]
    assert [p.name for p in (source.parent / "out").glob("*.safetensors")] == [
        "model-00001-of-00002.safetensors"
    ]
    index = json.loads((source.parent / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == (35 + 5) * 2


def test_metadata_survives_a_new_header(source: Path) -> None:
    run(source, Drop("g"))
    with safe_open(source.parent / "out" / "model-00001-of-00002.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("axis", [0, 1])
def test_centred_means_without_mean(source: Path, axis: int) -> None:
    before = stored(source)
    after = run(source, Center("b", axis))
    exact = before["b"] - before["b"].mean(axis, keepdim=True)
    assert torch.allclose(after["b"].double(), exact, atol=1e-7)


def test_a_shift_before_the_scale_uses_the_weight_as_it_was(source: Path) -> None:
    before = stored(source)
    after = run(source, Shift("bias", "a", 1, "g"), Scale("a", 1, "g", 0.0), Fill("g", 1.0))
    assert torch.equal(after["bias"], (before["bias"] + before["a"] @ before["g"]).float())


def test_config_is_merged_and_kept(source: Path) -> None:
    run(source, config={"kept": {"b": 2}, "tricksmith": {"x": 1}})
    config = json.loads((source.parent / "out" / "config.json").read_text())
    assert config == {"model_type": "llama", "kept": {"a": 1, "b": 2}, "tricksmith": {"x": 1}}


def test_an_edit_of_a_dropped_tensor_is_refused(source: Path) -> None:
    with pytest.raises(BadInput, match="no tensor b"):
        run(source, Drop("b"), Fill("b", 0.0))


def test_what_overflows_is_refused(source: Path) -> None:
    edits = [Make("test.product", {"a": "a", "b": "b"}, {"rows": New("c", "F16", (7, 4))}, {"by": 1e6})]
    with pytest.raises(BadInput, match="overflow float16"):
        run(source, *edits)


def teardown_module() -> None:
    del OPERATIONS["test.product"]
