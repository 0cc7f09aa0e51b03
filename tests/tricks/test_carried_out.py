"""A converted checkpoint is held against its plan, number by number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tricks import carried_out, convert, make_plan, parse_trick, read_checkpoint

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


def converted(out: Path, *tricks: str):
    plan = make_plan(read_checkpoint(TINY), [parse_trick(text) for text in tricks])
    convert(plan, TINY, out)
    return plan


def edit(folder: Path, name: str, change) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            new = change(tensors[name].clone())
            rest = {n: t for n, t in tensors.items() if n != name}
            save_file(rest | ({} if new is None else {name: new}), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "tricks", [["flashnorm"], ["flashnorm:form=strict"], ["precompute"], ["matshrink"], ["approximate"]]
)
def test_every_number_of_an_honest_conversion_is_the_plans(tmp_path, tricks):
    plan = converted(tmp_path / "out", *tricks)
    told = []
    found = carried_out(plan, TINY, tmp_path / "out", lambda *progress: told.append(progress))
    assert (found.wrong, found.left) == ((), 0)
    assert found.values == found.exact > 3_000_000
    assert told[-1] == ("weights", found.values, found.values)


def test_one_wrong_number_anywhere_is_named_with_its_tensor(tmp_path):
    plan = converted(tmp_path / "out", "flashnorm")
    row, gain, bits = "model.embed_tokens.weight", "model.layers.2.input_layernorm.weight", "lm_head.weight"

    def nan_in_an_unused_row(tensor):
        tensor[-1, 0] = torch.nan
        return tensor

    def two_units(tensor):
        tensor.view(torch.int16)[5, 5] += 2
        return tensor

    edit(tmp_path / "out", row, nan_in_an_unused_row)
    edit(tmp_path / "out", gain, lambda tensor: tensor * 1.25)
    edit(tmp_path / "out", bits, two_units)
    found = carried_out(plan, TINY, tmp_path / "out")
    assert {words.split(":")[0] for words in found.wrong} == {row, gain, bits}
    assert any(words.startswith(f"{row}: 1 of 393,216") and "not finite" in words for words in found.wrong)


def test_rounding_once_more_is_no_damage(tmp_path):
    plan = converted(tmp_path / "out", "flashnorm")
    name = "model.layers.2.mlp.up_proj.weight"

    def other_way(tensor):
        exact = (
            load_file_of(TINY, name).double()
            * load_file_of(TINY, "model.layers.2.post_attention_layernorm.weight").double()
        )
        down = torch.where(exact > tensor.double(), 1, -1) * tensor.sign()
        off = exact != tensor.double()
        tensor.view(torch.int16)[off] += down[off].to(torch.int16)
        return tensor

    edit(tmp_path / "out", name, other_way)
    found = carried_out(plan, TINY, tmp_path / "out")
    assert found.wrong == ()
    assert found.exact < found.values


def load_file_of(folder: Path, name: str) -> torch.Tensor:
    return next(t[name] for file in folder.glob("*.safetensors") if name in (t := load_file(file)))


def test_a_tensor_missing_or_too_many_or_of_another_shape_is_named(tmp_path):
    plan = converted(tmp_path / "out", "flashnorm")
    file = next((tmp_path / "out").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    save_file(tensors | {name: tensors[name][:-1].contiguous(), "more": torch.ones(2)}, file)
    wrong = carried_out(plan, TINY, tmp_path / "out").wrong
    assert any("more is not in the plan" in words for words in wrong)
    assert any(words.startswith(f"{name} is BF16") for words in wrong)
