"""FlashNorm's strict form, and the modelling code that ships with a converted model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from tests.tricks.small_models import logits, save_model
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.model import spread_experts

STRICT = [parse_trick("flashnorm:form=strict")]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def converted(folder: Path, model_type: str, dtype: torch.dtype = torch.float64, **fields: object) -> Plan:
    """`folder`/source and its strict form `folder`/out."""
    source = save_model(folder / "source", model_type, dtype, **fields)
    plan = make_plan(read_checkpoint(source), STRICT)
    convert(plan, source, folder / "out")
    return plan


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def own(folder: Path, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
    return model.eval()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("gemma", {}), ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 3}), ("qwen3_moe", MOE)],
)
def test_gains_are_gone_and_both_ways_of_loading_agree(
    model_type: str, fields: dict[str, object], tmp_path: Path
) -> None:
    plan = converted(tmp_path, model_type, **fields)
    assert plan.proof is not None
    assert plan.proof <= 1e-9
    assert plan.stock_loads
    gone = set(tensors(tmp_path / "source")) - set(tensors(tmp_path / "out"))
    assert len([name for name in gone if name.endswith("weight")]) == sum(place.fits for place in plan.places)
    before, after = logits(tmp_path / "source"), logits(tmp_path / "out")
    assert ((before - after).abs().max() / before.abs().max()).item() <= 1e-9


def test_what_is_folded_has_no_parameter_left_in_the_shipped_model(tmp_path: Path) -> None:
    converted(tmp_path, "llama")
    assert not [name for name, _ in own(tmp_path / "out").named_parameters() if "norm" in name]


def test_a_gain_that_other_code_reads_stays(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "mamba", state_size=4)
    plan = make_plan(read_checkpoint(source), STRICT)
    assert not plan.fits
    assert "other code reads it" in plan.places[0].detail


def test_shipped_code_runs_with_transformers_alone(tmp_path: Path) -> None:
    converted(tmp_path, "mixtral", torch.bfloat16, num_local_experts=4)
    script = """
import sys
for name in ("tricks", "service", "evals", "workers", "ui"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
folder, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True).eval()
assert type(model).__module__.endswith("modeling_tricksmith") and model.dtype is torch.bfloat16
ids = torch.arange(3, 15).view(2, 6)
text = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
assert text.shape == (2, 11)
with torch.no_grad():
    before = model(ids).logits
model.save_pretrained(again)
for trusted in (True, False):
    model = AutoModelForCausalLM.from_pretrained(again, dtype="auto", trust_remote_code=trusted).eval()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits.float(), before.float(), atol=0.1)
assert not any("layernorm" in name for name in model.state_dict()) or not trusted
"""
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), str(again)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"modeling_tricksmith.py", "modeling_flashnorm.py"} <= {path.name for path in again.iterdir()}
    config = json.loads((again / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["tricksmith"]["flashnorm"]["norms"]


def test_the_bare_model_loads_too(tmp_path: Path) -> None:
    converted(tmp_path, "llama")
    ids = torch.arange(3, 15).view(2, 6)
    hidden = []
    for folder in ("source", "out"):
        model = AutoModel.from_pretrained(tmp_path / folder, dtype=torch.float64).eval()
        with torch.no_grad():
            hidden.append(model(ids).last_hidden_state)
    gain = tensors(tmp_path / "source")["model.norm.weight"]
    assert torch.allclose(hidden[0], hidden[1] * gain, atol=1e-5)


def test_under_a_name_of_its_own_a_model_loads_with_its_code_alone(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "mixtral", num_local_experts=4)
    plan = replace(make_plan(read_checkpoint(source), STRICT), stock_loads=False)
    convert(plan, source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"tricksmith_mixtral|trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    ids = torch.arange(3, 15).view(2, 6)
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
    own(tmp_path / "out").save_pretrained(tmp_path / "again")
    for after in (own(tmp_path / "out"), own(tmp_path / "again")):
        spread_experts(before)
        spread_experts(after)
        with torch.no_grad():
            assert torch.allclose(before(ids).logits, after(ids).logits, atol=1e-5)
    assert "model.layers.0.block_sparse_moe.gate.weight" in tensors(tmp_path / "out")
    assert set(tensors(tmp_path / "again")) == set(tensors(tmp_path / "out"))


def test_marks_say_what_is_true(tmp_path: Path) -> None:
    for folder, tied, fields in (
        ("untied", False, {"flashnorm_folded", "flash_norm"}),
        ("tied", True, {"flash_norm"}),
    ):
        source = save_model(tmp_path / folder, "llama", tie_word_embeddings=tied)
        plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
        assert {name for name, value in plan.config.items() if value is True} == fields
    # Gemma 2's post-attention norms keep their gains, so neither mark would be true.
    source = save_model(tmp_path / "gemma2", "gemma2", sliding_window=4, query_pre_attn_scalar=12)
    assert make_plan(read_checkpoint(source), [parse_trick("flashnorm")]).config == {}
