"""What no text shows is read from the files: unused rows, long contexts, where a chat ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from evals import Evidence, Verdict, compare
from tricks import convert, make_plan, parse_trick, read_checkpoint

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """The trained model converted, with a manifest that says how."""
    out = tmp_path_factory.mktemp("honest") / "out"
    convert(make_plan(read_checkpoint(TINY), [parse_trick("flashnorm")]), TINY, out)
    (out / "conversion.json").write_text(json.dumps({"recipe": ["flashnorm"]}))
    return out


@pytest.fixture
def out(honest, tmp_path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "out"))


def reasons(converted: Path) -> str:
    evidence = compare(TINY, converted, tokens=64)
    assert evidence.verdict is (Verdict.DIFFERENT if evidence.reasons else Verdict.EQUIVALENT)
    return "; ".join(evidence.reasons)


def test_an_honest_conversion_says_how_many_numbers_were_computed_again(honest):
    evidence = compare(TINY, honest, tokens=64)
    assert evidence.verdict is Verdict.EQUIVALENT
    assert evidence.weights.values == evidence.weights.exact == 3_443_136
    assert evidence.weights.proof < 1e-9
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))).weights == evidence.weights
    assert any(name == "weights computed again from the plan" for name, _ in evidence.headline())


@pytest.mark.parametrize(
    ("file", "entries", "word"),
    [
        (
            "config.json",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
            "rope",
        ),
        ("config.json", {"max_position_embeddings": 4096}, "max_position"),
        ("config.json", {"eos_token_id": 7}, "eos_token_id"),
        ("config.json", {"dtype": "float16"}, "config.json says float16"),
        ("generation_config.json", {"eos_token_id": [1, 7]}, "generation_config.json differs"),
        ("generation_config.json", {"repetition_penalty": 1.3}, "repetition_penalty"),
    ],
)
@pytest.mark.parametrize("planned", [True, False], ids=["with a plan", "without one"])
def test_settings_that_a_short_text_does_not_show_are_compared(out, file, entries, word, planned):
    if not planned:
        (out / "conversion.json").unlink()
    (out / file).write_text(json.dumps(json.loads((out / file).read_text()) | entries))
    assert word in reasons(out)


def test_a_config_written_in_other_words_is_no_change(out):
    config = json.loads((out / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    del config["pretraining_tp"], config["attention_dropout"]
    (out / "config.json").write_text(json.dumps(config | {"transformers_version": "4.0.0"}))
    assert reasons(out) == ""


@pytest.mark.parametrize("planned", [True, False], ids=["with a plan", "without one"])
@pytest.mark.parametrize("damage", ["nan", "wrong"])
def test_the_row_of_a_token_that_no_text_has_is_compared(out, edited, tmp_path, planned, damage):
    def spoil(tensors):
        rows = tensors["model.embed_tokens.weight"]
        rows[2047] = torch.nan if damage == "nan" else rows[5]

    spoilt = edited(out, spoil)
    if not planned:
        (spoilt / "conversion.json").unlink()
    said = reasons(spoilt)
    assert "model.embed_tokens.weight" in said
    if damage == "wrong" and not planned:
        assert "1 of 2,048 rows" in said


def test_one_wrong_row_of_a_scaled_head_is_out_of_line(out, edited):
    def spoil(tensors):
        tensors["lm_head.weight"][1999] = tensors["lm_head.weight"][5]

    spoilt = edited(out, spoil)
    (spoilt / "conversion.json").unlink()
    assert "1 of 2,048 rows of lm_head.weight" in reasons(spoilt)
