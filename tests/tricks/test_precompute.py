"""The first layer from a table: the same answers from many wirings, and words where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from tests.tricks.small_models import MLA, OMIT, save_model
from tricks import BadInput, Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.float64 import float64_arithmetic
from tricks.model import spread_experts
from tricks.precompute import savings
from tricks.tabulate import CHUNK

FITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": 4},
    "phi3": {},
    "phi": {},
    "cohere": {},
    "gptj": {"n_embd": 48, "n_head": 4, "n_layer": 3, "rotary_dim": 4, "tie_word_embeddings": False},
    "bloom": {"n_head": 4, "n_layer": 3},
    "mamba": {"state_size": 4},
    "gpt_neox": {"num_key_value_heads": 4},
    "mixtral": {"num_local_experts": 4},
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 64},
    "falcon": {"head_dim": OMIT, "num_key_value_heads": OMIT},
    "smollm3-nope": {"no_rope_layers": [0, 1, 1]},
    "deepseek_v3": MLA,
    "olmo2": {},
}
PARALLEL = ("phi", "cohere", "gptj", "gpt_neox", "falcon")


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", trust_remote_code=True
    )
    spread_experts(model)
    return model.eval()


def answers(folder: Path) -> torch.Tensor:
    model = load(folder).double()
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), float64_arithmetic():
        return model(input_ids=ids, use_cache=False).logits


def convert_with(source: Path, *tricks: str) -> tuple[Plan, Path]:
    plan = make_plan(read_checkpoint(source), [parse_trick(text) for text in tricks])
    out = source.parent / "out"
    convert(plan, source, out)
    return plan, out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("wiring", FITS)
def test_looked_up_is_the_same_as_computed(wiring: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", wiring.partition("-")[0], **FITS[wiring])
    plan, out = convert_with(source, "precompute")
    assert plan.fits
    assert plan.lossless
    assert not plan.stock_loads
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-12 * a.abs().max()
    joined = [place.where for place in plan.places if "joins" in place.detail]
    assert bool(joined) == (wiring in PARALLEL)
    before, after = tensors(source), tensors(out)
    saved = sum(t.numel() * 8 for t in before.values()) - sum(t.numel() * 8 for t in after.values())
    assert plan.savings["weight_bytes_saved"] == saved


def test_generation_with_a_cache_is_the_same(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    _, out = convert_with(source, "precompute")
    ids = torch.tensor([[5, 7, 11, 13]])
    texts = [load(folder).generate(ids, max_new_tokens=12, do_sample=False) for folder in (source, out)]
    assert torch.equal(*texts)


def test_saved_again_it_still_loads(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", tie_word_embeddings=True)
    _, out = convert_with(source, "precompute")
    load(out).save_pretrained(tmp_path / "again")
    for file in out.glob("*.py"):
        (tmp_path / "again" / file.name).write_bytes(file.read_bytes())
    assert torch.allclose(answers(out), answers(tmp_path / "again"), rtol=0, atol=1e-12)


def test_embeddings_given_by_hand_are_refused_and_never_answered_wrongly(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    model = load(convert_with(source, "precompute")[1])
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 3, 48, dtype=torch.float64))


def test_stock_code_refuses_the_weights(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    _, out = convert_with(source, "precompute")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)


def test_the_table_composes_with_flashnorm(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    plan, out = convert_with(source, "flashnorm", "precompute")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-12 * a.abs().max()
    first = next(p for p in plan.places if p.trick == "flashnorm" and p.where.endswith("0.input_layernorm"))
    assert not first.fits
    assert "precompute" in first.detail


def test_rows_are_computed_in_float64_and_rounded_once(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", torch.bfloat16)
    _, out = convert_with(source, "precompute")
    before = {name: t.double() for name, t in tensors(source).items()}
    x = before["model.embed_tokens.weight"]
    normed = (
        x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * before["model.layers.0.input_layernorm.weight"]
    )
    query = (normed @ before["model.layers.0.self_attn.q_proj.weight"].T).bfloat16()
    table = tensors(out)["model.embed_tokens.table"]
    assert torch.equal(table[:, :48].double(), x)
    assert torch.equal(table[:, 48:96], query)


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64}, "absolute positions"),
        ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 48}, "absolute positions"),
    ],
)
def test_positions_in_the_embedding_are_a_reason(
    model_type: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "source", model_type, **fields)
    plan = make_plan(read_checkpoint(source), [parse_trick("precompute")])
    assert not plan.fits
    assert reason in plan.places[0].detail


def test_token_types_in_the_embedding_are_a_reason(tmp_path: Path) -> None:
    fields = {"is_decoder": True, "architectures": ["BertLMHeadModel"]}
    source = save_model(tmp_path / "source", "bert", head_dim=OMIT, num_key_value_heads=OMIT, **fields)
    plan = make_plan(read_checkpoint(source), [parse_trick("precompute")])
    assert not plan.fits
    assert "adds a token's type" in plan.places[0].detail


def test_a_model_that_also_sees_is_left_alone(tmp_path: Path) -> None:
    """What an image becomes enters behind the table."""
    text = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**text, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(
        "llava", text_config={**text, "model_type": "llama", "vocab_size": 99}, vision_config=vision
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    plan = make_plan(read_checkpoint(tmp_path), [parse_trick("precompute")])
    assert not plan.fits
    assert "no plain causal language model" in plan.places[0].detail


def test_a_vocabulary_larger_than_the_tokenizers_is_tabulated_whole(tmp_path: Path) -> None:
    """Rows that no text names are rows too; more of them than are computed at a time."""
    source = save_model(tmp_path / "source", "llama", vocab_size=CHUNK + 77)
    _, out = convert_with(source, "precompute")
    assert tensors(out)["model.embed_tokens.table"].shape[0] == CHUNK + 77
    ids = torch.tensor([[5, CHUNK - 1, CHUNK, CHUNK + 76]])
    with torch.no_grad(), float64_arithmetic():
        a, b = (load(folder).double()(input_ids=ids, use_cache=False).logits for folder in (source, out))
    assert (a - b).abs().max() <= 1e-12 * a.abs().max()


def test_a_vocabulary_padded_in_the_weights_alone_is_one_line(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    for file in source.glob("*.safetensors"):
        held = load_file(file)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in held:
                held[name] = torch.cat([held[name], torch.zeros(5, 48, dtype=torch.float64)])
                save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="they belong to different models") as error:
        make_plan(read_checkpoint(source), [parse_trick("precompute")])
    assert "\n" not in str(error.value)


def test_a_broken_first_layer_is_not_tabulated(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    plan = make_plan(read_checkpoint(source), [parse_trick("precompute")])
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.self_attn.k_proj.weight"
    held = load_file(source / index[name])
    held[name][3, 4] = float("nan")
    save_file(held, source / index[name], metadata={"format": "pt"})
    with pytest.raises(BadInput, match="NaN or Inf"):
        convert(plan, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("figures", "before", "after", "grown"),
    [
        # Pythia-6.9B as the paper computes it, with the vocabulary of GPT-J, and Mistral-7B.
        ((50400, 4096, 4 * 4096, 184_549_376), 184_553_472, 16_384, 434_765_824),
        ((32000, 4096, 2 * (4096 + 1024), 25_165_824), 25_169_920, 10_240, 171_442_176),
    ],
)
def test_savings_are_the_papers(
    figures: tuple[int, int, int, int], before: int, after: int, grown: int
) -> None:
    found = savings(*figures, element=2)
    assert found["first_layer_reads_before_batch_1"] == before
    assert found["first_layer_reads_after_batch_1"] == after
    assert found["weight_bytes_saved"] == -2 * grown


def test_a_plan_at_full_size_has_full_widths() -> None:
    """From headers alone: Mistral-7B's sizes."""
    config = {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 2, "vocab_size": 32000, "tie_word_embeddings": False,
    }  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (32000, 4096),
        "lm_head.weight": (32000, 4096),
        "model.norm.weight": (4096,),
    }
    for layer in range(2):
        stem = f"model.layers.{layer}."
        shapes |= {
            stem + "self_attn.q_proj.weight": (4096, 4096),
            stem + "self_attn.k_proj.weight": (1024, 4096),
            stem + "self_attn.v_proj.weight": (1024, 4096),
            stem + "self_attn.o_proj.weight": (4096, 4096),
            stem + "mlp.gate_proj.weight": (14336, 4096),
            stem + "mlp.up_proj.weight": (14336, 4096),
            stem + "mlp.down_proj.weight": (4096, 14336),
            stem + "input_layernorm.weight": (4096,),
            stem + "post_attention_layernorm.weight": (4096,),
        }
    infos = {
        name: TensorInfo(name, "model.safetensors", "BF16", shape, 0, 0) for name, shape in shapes.items()
    }
    checkpoint = Checkpoint("mistral", config, infos, ("model.safetensors",))
    plan = make_plan(checkpoint, [parse_trick("precompute")])
    assert plan.savings["first_layer_reads_after_batch_1"] == 10_240
    # The paper leaves the norm's 4096 gains out.
    assert plan.savings["first_layer_reads_before_batch_1"] == 25_169_920 + 4096


def test_old_names_of_tensors_stay_found(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", tie_word_embeddings=True)
    _, out = convert_with(source, "precompute")
    with safe_open(next(out.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert "model.embed_tokens.weight" not in tensors(out)
