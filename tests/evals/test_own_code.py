"""Modelling code that came with a conversion runs as it was shipped, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals import compare
from tricks import BadInput, convert, make_plan, parse_trick, read_checkpoint


@pytest.fixture(scope="module")
def slim(tmp_path_factory) -> tuple[Path, Path]:
    """A random Llama, and its conversion to slim attention, which brings its own code."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    source = tmp_path_factory.mktemp("slim") / "source"
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(source)
    out = source.with_name("out")
    convert(make_plan(read_checkpoint(source), [parse_trick("slim")]), source, out)
    (out / "conversion.json").write_text(json.dumps({"recipe": ["slim"]}))
    return source, out


def test_code_as_it_was_shipped_runs(slim):
    evidence = compare(*slim, tokens=128)
    assert evidence.wide is not None
    assert evidence.wide.divergence < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        lambda code, mark: code + f"\nopen({str(mark)!r}, 'w')\n",
        lambda code, mark: code.replace("return ", f"open({str(mark)!r}, 'w')\n        return ", 1),
        lambda code, mark: code.replace("\n", "\r\n"),
        lambda code, mark: code[: len(code) // 2],
    ],
    ids=["a line more", "in a method", "other line ends", "half of it"],
)
def test_altered_code_is_refused_and_never_runs(slim, tmp_path, change):
    source, out = slim
    spoilt = Path(shutil.copytree(out, tmp_path / "spoilt"))
    mark = tmp_path / "ran"
    for file in spoilt.glob("modeling_*.py"):
        file.write_bytes(change(file.read_text(), mark).encode())
    with pytest.raises(BadInput, match="brings code that this version of Tricksmith does not ship") as caught:
        compare(source, spoilt, tokens=64)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_code_that_lies_elsewhere_is_never_fetched(slim, tmp_path, set_config):
    source, out = slim
    spoilt = Path(shutil.copytree(out, tmp_path / "spoilt"))
    named = json.loads((spoilt / "config.json").read_text())["auto_map"]
    set_config(spoilt, auto_map={key: f"evil/repo--{value}" for key, value in named.items()})
    with pytest.raises(BadInput, match="never fetched or run"):
        compare(source, spoilt, tokens=64)
