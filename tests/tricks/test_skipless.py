"""Skipless transformers: two matrices a block merged away, proven; what stands in the way elsewhere."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tricks.small_models import save_model
from tests.tricks.test_precompute import answers, convert_with, load, tensors
from tricks import BadInput, convert, make_plan, parse_trick, read_checkpoint
from tricks.attention import attentions
from tricks.obstacles import goes_around
from tricks.shipped import modeling_skipless as shipped
from tricks.shipped.modeling_skipless import SkiplessConfig, SkiplessForCausalLM
from tricks.small import randomise

MHA = {"num_key_value_heads": 4}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "gqa-q": ({}, "q"),
    "gqa-biases": ({"bias": True}, "q"),
    "mha-k": (MHA, "k"),
    "mha-v-biases": ({**MHA, "bias": True}, "v"),
    "plain-ffn": ({"glu": False, "hidden_act": "gelu"}, "q"),
    "nope-tied": ({"rope": False, "tie_word_embeddings": True}, "q"),
    "moe": ({"num_experts": 4}, "q"),
    "moe-biases": ({"num_experts": 3, "bias": True}, "q"),
    "parallel": ({"parallel": True, "bias": True}, "q"),
    "parallel-v": ({"parallel": True, **MHA}, "v"),
    "plain-attention": ({"shaped": False}, "q"),
}


def skipless(folder: Path, dtype: torch.dtype = torch.float64, **fields: Any) -> Path:
    sizes = {"vocab_size": 99, "hidden_size": 48, "intermediate_size": 80, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = SkiplessForCausalLM(SkiplessConfig(**{**sizes, "num_hidden_layers": 3, **fields})).double()
    randomise(model)
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_merged_it_answers_the_same_with_fewer_weights(name: str, tmp_path: Path) -> None:
    fields, absorbed = MODELS[name]
    source = skipless(tmp_path / "source", **fields)
    plan, out = convert_with(source, f"skipless:absorb={absorbed}")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-9 * a.abs().max()
    before, after = tensors(source), tensors(out)
    saved = sum(t.nbytes for t in before.values()) - sum(t.nbytes for t in after.values())
    assert plan.savings["weight_bytes_saved"] == saved
    matrices = 1 if fields.get("parallel") else 2
    biases = matrices * 48 if fields.get("bias") else 0
    untied = 99 * 48 if fields.get("tie_word_embeddings") else 0
    assert saved == 8 * (3 * (matrices * 48 * 48 + biases) - untied)


def test_generation_with_a_cache_is_the_same(tmp_path: Path) -> None:
    source = skipless(tmp_path / "source", bias=True)
    _, out = convert_with(source, "skipless")
    ids = torch.tensor([[5, 7, 11, 13], [9, 8, 7, 6]])
    texts = [load(folder).generate(ids, max_new_tokens=8, do_sample=False) for folder in (source, out)]
    assert torch.equal(*texts)


def test_cached_steps_give_what_one_pass_gives() -> None:
    torch.manual_seed(1)
    model = SkiplessForCausalLM(SkiplessConfig(vocab_size=50, hidden_size=32)).double().eval()
    randomise(model)
    ids = torch.randint(0, 50, (2, 9))
    whole = model(input_ids=ids).logits
    cache, parts = None, []
    for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
        step = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10)


def test_it_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SkiplessForCausalLM(SkiplessConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.arange(64).remainder(7).unsqueeze(0) + 3
    first = model(input_ids=ids, labels=ids).loss.item()
    for _ in range(40):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first / 3


def test_shipped_code_imports_torch_and_transformers_alone(tmp_path: Path) -> None:
    """The result loads where Tricksmith is not installed."""
    _, out = convert_with(skipless(tmp_path / "source"), "skipless")
    config = json.loads((out / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
    code = sorted(out.glob("*.py"))
    assert code
    for node in (node for file in code for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] in {"__future__", "typing", "torch", "transformers"}
        elif isinstance(node, ast.Import):
            assert {name.name for name in node.names} <= {"torch"}


def test_shared_heads_cannot_lose_k_or_v(tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(skipless(tmp_path / "source")), [parse_trick("skipless:absorb=k")])
    assert not plan.fits
    assert "not square" in plan.places[0].detail


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"hidden_size": 45, "num_attention_heads": 5, "num_key_value_heads": 5},
            "9 channels cannot be rotated",
        ),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "5 of 4 experts"),
    ],
)
def test_sizes_that_do_not_divide_are_one_line(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    source = skipless(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(BadInput, match=reason) as error:
        make_plan(read_checkpoint(source), [parse_trick("skipless")])
    assert "\n" not in str(error.value)


def test_heads_of_odd_channels_are_merged_where_nothing_rotates_them(tmp_path: Path) -> None:
    fields = {"hidden_size": 45, "num_attention_heads": 5, "num_key_value_heads": 5, "rope": False}
    source = skipless(tmp_path / "source", **fields)
    _, out = convert_with(source, "skipless:absorb=v")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-9 * a.abs().max()


def test_merged_twice_is_refused(tmp_path: Path) -> None:
    _, out = convert_with(skipless(tmp_path / "source"), "skipless")
    with pytest.raises(BadInput, match="is a converted model"):
        make_plan(read_checkpoint(out), [parse_trick("skipless")])


def test_a_singular_matrix_is_one_line_that_names_it(tmp_path: Path) -> None:
    source = skipless(tmp_path / "source", **MHA)
    name = "layers.1.attention.q_proj.weight"
    for file in source.glob("*.safetensors"):
        held = load_file(file)
        if name in held:
            held[name][0] = held[name][1]
            save_file(held, file, metadata={"format": "pt"})
    plan = make_plan(read_checkpoint(source), [parse_trick("skipless")])
    with pytest.raises(BadInput, match="rank-deficient") as error:
        convert(plan, source, tmp_path / "out")
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    plan = make_plan(read_checkpoint(source), [parse_trick("skipless:absorb=v")])
    done = convert(plan, source, tmp_path / "other")
    assert 1 < done.conditions["absorb.undo"] < 1e8


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "cohere"])
def test_other_models_are_told_what_stands_in_the_way(model_type: str, tmp_path: Path) -> None:
    fields = {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64} if model_type == "gpt2" else {}
    plan = make_plan(
        read_checkpoint(save_model(tmp_path / "source", model_type, **fields)), [parse_trick("skipless")]
    )
    assert not plan.fits
    assert len(plan.places) == 3
    for place in plan.places:
        assert "a skip connection goes around" in place.detail
        assert "another goes around" in place.detail
        assert "norms stand between" in place.detail


def test_without_skips_the_experiment_finds_none() -> None:
    torch.manual_seed(0)
    model = SkiplessForCausalLM(SkiplessConfig(vocab_size=99, hidden_size=32)).double().eval()
    randomise(model)
    found = attentions(model)
    assert len(found) == 3
    for one in found:
        layer = one.where.removesuffix(".attention")
        assert not goes_around(model, layer, [one.output])
        assert not goes_around(model, layer, [f"{layer}.feed_forward"])


def test_a_saved_model_is_found_by_the_auto_classes(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(skipless(tmp_path / "source"))
    assert isinstance(model, SkiplessForCausalLM)


def test_the_trained_model_of_this_repo_stays_the_same(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "models" / "tiny-skipless"
    code = Path(shipped.__file__)
    assert (source / code.name).read_bytes() == code.read_bytes(), "copy the code into the model's folder"
    plan = make_plan(read_checkpoint(source), [parse_trick("skipless")])
    done = convert(plan, source, tmp_path / "out")
    assert 1 < done.conditions["absorb.undo"] < 100
    a, b = answers(source), answers(tmp_path / "out")
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()
