"""FlashNorm's form center: LayerNorm as RMSNorm of a residual stream that has no mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tricks.small_models import logits, save_model
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.float64 import float64_arithmetic

GPT2: dict[str, Any] = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64}


def plan_of(folder: Path, model_type: str, **fields: Any) -> Plan:
    source = save_model(folder / "source", model_type, **fields)
    return make_plan(read_checkpoint(source), [parse_trick("flashnorm:form=center")])


def model(folder: Path, own_code: bool = True) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", trust_remote_code=own_code
    ).eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt_neox", {"num_key_value_heads": 4}),  # parallel blocks, rotary
        ("cohere", {}),  # no biases, tied, one norm for both branches
        ("bloom", {"n_embd": 48, "n_head": 4, "n_layer": 2}),  # a norm behind the embedding
        ("phimoe", {"num_local_experts": 4}),  # experts write, biases are added for the fold
    ],
)
def test_every_layer_norm_of_a_stream_becomes_one_that_takes_no_mean_off(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, model_type, **fields)
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    assert plan.stock_loads
    centred = [place.where for place in plan.places if "becomes RMSNorm" in place.detail]
    behind_the_embedding = model_type == "bloom"
    assert len(centred) == len(plan.places) - behind_the_embedding


def test_rows_lose_their_mean_in_the_files_where_nothing_else_reads_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "gpt2", tie_word_embeddings=False, **GPT2)
    convert(plan, tmp_path / "source", tmp_path / "out")
    after = tensors(tmp_path / "out")
    for name, axis in {
        "transformer.wte.weight": 1,
        "transformer.wpe.weight": 1,
        "transformer.h.1.attn.c_proj.weight": 1,
        "transformer.h.1.attn.c_proj.bias": 0,
        "transformer.h.0.mlp.c_proj.weight": 1,
    }.items():
        assert after[name].mean(axis).abs().max() < 1e-12, name
    before = tensors(tmp_path / "source")
    assert torch.equal(before["lm_head.weight"].mean(0).abs() > 1e-6, torch.ones(48, dtype=torch.bool))
    assert torch.allclose(logits(tmp_path / "source"), logits(tmp_path / "out"), atol=1e-9)


def test_a_tied_embedding_is_centred_as_it_is_looked_up_and_so_are_embeddings_from_outside(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, "gpt2", **GPT2)
    convert(plan, tmp_path / "source", tmp_path / "out")
    before, after = tensors(tmp_path / "source"), tensors(tmp_path / "out")
    assert torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])
    given = torch.randn(2, 5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 1.0
    ids = torch.arange(3, 13).view(2, 5)
    with torch.no_grad(), float64_arithmetic():
        for inputs in ({"input_ids": ids}, {"inputs_embeds": given}):
            a, b = (model(tmp_path / name)(**inputs).logits for name in ("source", "out"))
            assert torch.allclose(a, b, atol=1e-9)
    # What the shipped code does there is needed: without it the mean would stay in.
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["tricksmith"]["flashnorm"]["centred"] = []
    path.write_text(json.dumps(config))
    with torch.no_grad(), float64_arithmetic():
        a, b = (model(tmp_path / name)(ids).logits for name in ("source", "out"))
    assert (a - b).abs().max() > 1e-3


def test_what_cannot_be_centred_says_why(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "llama", "llama")
    assert not plan.fits
    assert "RMSNorm already" in plan.places[0].detail
    xglm = {"d_model": 48, "attention_heads": 4, "num_layers": 2, "ffn_dim": 80}
    plan = plan_of(tmp_path / "xglm", "xglm", **xglm)  # positions that no parameter writes
    assert not plan.fits
    assert "no parameter writes" in plan.places[0].detail
