"""MatShrink: fewer weights and the same answers; a naive choice of channels is the worse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.tricks import latent_model  # noqa: F401 - registers its class
from tests.tricks.small_models import MLA, OMIT, logits, save_model
from tests.tricks.test_precompute import answers, convert_with, load, tensors
from tricks import BadInput, convert, make_plan, parse_trick, read_checkpoint
from tricks.attention import LEAST_HEAD, attention_of
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.draft import draft_plan, subject_of
from tricks.edits import Make
from tricks.layout import saved_shapes
from tricks.model import build, read_config
from tricks.pivots import pivots
from tricks.small import randomise

GEMMA3N: dict[str, Any] = {
    "laurel_rank": 6, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99,
    "altup_num_inputs": 2, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3,
    "activation_sparsity_pattern": [0.0] * 3, "intermediate_size": [80] * 3,
}  # fmt: skip
GPT2 = {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64}
# What a layer loses: heads x (values squared + free keys squared).
FITS: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({}, 2 * 12 * 12),
    "llama-biases": ({"attention_bias": True}, 2 * 12 * 12),
    "qwen3": ({}, 2 * 12 * 12),
    "phi3": ({}, 2 * 12 * 12),
    "phi": ({"partial_rotary_factor": 0.5}, 2 * (12 * 12 + 6 * 6)),
    "gptj": ({**GPT2, "rotary_dim": 4, "tie_word_embeddings": False}, 4 * (12 * 12 + 8 * 8)),
    "gpt2": (GPT2, 4 * (12 * 12 + 12 * 12)),
    "bloom": ({"n_head": 4, "n_layer": 3}, 4 * (12 * 12 + 12 * 12)),
    "deepseek_v3": (MLA, 4 * (8 * 8 + 8 * 8)),
    "smollm3": ({"no_rope_layers": [1, 0, 1]}, 2 * 12 * 12),
    # Half of a head is rotated; in the smallest model of its class that is one channel, without a partner.
    "stablelm": ({"partial_rotary_factor": 0.5}, 2 * (12 * 12 + 6 * 6)),
    "falcon": ({"head_dim": OMIT, "num_key_value_heads": OMIT}, 12 * 12),
    "latent_deepseek": (MLA, 24 * 24 + 16 * 16 + 4 * (8 * 8 + 8 * 8)),
    "latent_deepseek-queries": ({**MLA, "q_lora_rank": None}, 16 * 16 + 4 * (8 * 8 + 8 * 8)),
    "gemma3n_text": (GEMMA3N, 6 * 6),
}


@pytest.mark.parametrize("wiring", FITS)
def test_the_shrunk_model_answers_as_its_source_does(wiring: str, tmp_path: Path) -> None:
    fields, lost = FITS[wiring]
    source = save_model(tmp_path / "source", wiring.partition("-")[0], **fields)
    plan, out = convert_with(source, "matshrink")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-11 * a.abs().max()
    before, after = tensors(source), tensors(out)
    weights = sum(t.numel() for t in before.values()) - sum(
        t.numel() for name, t in after.items() if "index" not in name
    )
    assert weights >= 3 * lost
    stored = sum(t.nbytes for t in before.values()) - sum(t.nbytes for t in after.values())
    assert plan.savings["weight_bytes_saved"] == stored
    assert plan.savings["multiplications_per_token_saved"] == weights


@pytest.mark.parametrize("wiring", ["gpt2", "phi", "latent_deepseek"])
def test_compat_keeps_shapes_and_loads_in_stock_code(wiring: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", wiring, **FITS[wiring][0])
    plan, out = convert_with(source, "matshrink:form=compat")
    assert plan.stock_loads
    assert plan.savings["weight_bytes_saved"] == 0
    assert {name: t.shape for name, t in tensors(source).items()} == {
        name: t.shape for name, t in tensors(out).items()
    }
    a, b = logits(source), logits(out)
    assert (a - b).abs().max() <= 1e-11 * a.abs().max()


def test_decoding_and_prefill_agree(tmp_path: Path) -> None:
    """Few tokens go through the stored form, many through the whole matrix."""
    source = save_model(tmp_path / "source", "deepseek_v3", **MLA)
    _, out = convert_with(source, "matshrink")
    ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(2))
    texts = [load(folder).generate(ids, max_new_tokens=8, do_sample=False) for folder in (source, out)]
    assert torch.equal(*texts)


def test_bfloat16_is_close_and_runs_in_its_own_dtype(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", torch.bfloat16)
    _, out = convert_with(source, "matshrink")
    model = load(out, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype is torch.bfloat16


def test_it_composes_with_flashnorm_and_precompute(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    plan, out = convert_with(source, "matshrink", "flashnorm", "precompute")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-11 * a.abs().max()
    shrunk = [place for place in plan.places if place.trick == "matshrink" and place.fits]
    assert [place.where for place in shrunk] == ["model.layers.1.self_attn", "model.layers.2.self_attn"]


def places(plan: Any, fits: bool) -> dict[str, str]:
    return {place.where: place.detail for place in plan.places if place.fits == fits}


def test_a_norm_in_the_latents_is_named(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "deepseek_v3", **MLA)
    left = places(draft_plan(read_checkpoint(source), [parse_trick("matshrink")]), fits=False)
    stem = "model.layers.1.self_attn."
    assert (
        left[f"{stem}q_a_proj (with {stem}q_b_proj)"] == "q_a_layernorm stands between q_a_proj and q_b_proj"
    )
    assert "kv_a_layernorm stands between" in left[f"{stem}kv_a_proj_with_mqa (with {stem}kv_b_proj)"]


SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
WITH_ENCODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4},
        6,
    ),
    "bert": ("BertForMaskedLM", SIZES, 2),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            "d_model": 48, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80, "num_mel_bins": 8,
            "max_source_positions": 50, "decoder_start_token_id": 1, "pad_token_id": 0,
        },
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", WITH_ENCODERS)
def test_encoders_and_cross_attention_lose_values_and_keys(model_type: str, tmp_path: Path) -> None:
    """The paper's own examples, of which it measured none: absolute or relative positions leave keys free."""
    name, fields, blocks = WITH_ENCODERS[model_type]
    torch.manual_seed(0)
    model = getattr(transformers, name)(AutoConfig.for_model(model_type, vocab_size=99, **fields)).double()
    randomise(model)
    model.save_pretrained(tmp_path / "source")
    plan, out = convert_with(tmp_path / "source", "matshrink")
    assert len(places(plan, fits=True)) == 2 * blocks
    assert not places(plan, fits=False)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    stored = sum(t.nbytes for t in tensors(out).values())
    assert (
        sum(t.nbytes for t in tensors(tmp_path / "source").values()) - stored
        == (plan.savings["weight_bytes_saved"])
    )


def test_the_savings_at_full_size_are_the_papers() -> None:
    """DeepSeek-V3's sizes: 4.2 million weights a layer in heads, 2.6 more in latents without norms."""
    sizes = {"num_hidden_layers": 1, "first_k_dense_replace": 1, "vocab_size": 1000, "n_routed_experts": 8}
    config = AutoConfig.for_model("latent_deepseek", **sizes).to_dict()
    config["architectures"] = ["LatentForCausalLM"]
    shapes = saved_shapes(build(read_config(config, "it"), "meta", torch.bfloat16))
    file = "model.safetensors"
    infos = {name: TensorInfo(name, file, "BF16", tuple(shape), 0, 0) for name, shape in shapes.items()}
    plan = draft_plan(Checkpoint("it", config, infos, (file,)), [parse_trick("matshrink")])
    assert plan.savings["multiplications_per_token_saved"] == 6_815_744
    merges = [merge for edit in plan.edits if isinstance(edit, Make) for merge in edit.options["merges"]]
    assert [merge["kind"] for merge in merges] == ["latents"] * 2 + ["values"] * 128 + ["keys"] * 128
    assert sum(merge["left"][2] ** 2 for merge in merges[2:]) == 2 * 128 * 128**2


@pytest.mark.parametrize(("head", "free"), [(128, 96), (80, 0)])
def test_a_rotated_share_of_a_head_is_that_of_the_full_model(head: int, free: int) -> None:
    """A quarter of 128 channels is one in small as well; a quarter of 80 is 1 of 5, or 2 of 10, there."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 2 * head, "vocab_size": 100}
    config = AutoConfig.for_model("gpt_neox", intermediate_size=128 * head, **sizes).to_dict()
    config["architectures"] = None
    shapes = saved_shapes(build(read_config(config, "it"), "meta", torch.bfloat16))
    file = "model.safetensors"
    infos = {name: TensorInfo(name, file, "BF16", tuple(shape), 0, 0) for name, shape in shapes.items()}
    plan = draft_plan(Checkpoint("it", config, infos, (file,)), [parse_trick("matshrink")])
    keys = [
        merge["left"][1:]
        for edit in plan.edits
        if isinstance(edit, Make)
        for merge in edit.options["merges"]
        if merge["kind"] == "keys"
    ]
    # Whatever is found free lies behind the rotated quarter.
    assert all(start % (3 * head) >= head // 4 for start, _ in keys)
    assert {size for _, size in keys} <= {3 * head // 4}
    assert keys or not free


def test_what_does_not_fit_says_why(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "mamba", state_size=4)
    plan = make_plan(read_checkpoint(source), [parse_trick("matshrink")])
    assert not plan.fits
    assert all(place.detail for place in plan.places)
    source = save_model(tmp_path / "rope", "qwen3")
    plan = make_plan(read_checkpoint(source), [parse_trick("matshrink")])
    assert any("position or a norm" in place.detail for place in plan.places if not place.fits)


def test_a_rank_deficient_head_is_one_line(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    name = "model.layers.1.self_attn.v_proj.weight"
    for file in source.glob("*.safetensors"):
        held = load_file(file)
        if name in held:
            held[name][5] = held[name][6]
            save_file(held, file, metadata={"format": "pt"})
    plan = make_plan(read_checkpoint(source), [parse_trick("matshrink")])
    with pytest.raises(BadInput, match="rank-deficient") as error:
        convert(plan, source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert "layers.1.self_attn.v_proj" in str(error.value)


def test_the_conversion_tells_the_worst_condition(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    worst = {}
    for pivot in ("qr", "first"):
        plan = make_plan(read_checkpoint(source), [parse_trick(f"matshrink:pivot={pivot}")])
        worst[pivot] = convert(plan, source, tmp_path / pivot).conditions["matshrink.block"]
    assert 1 < worst["qr"] < worst["first"]


def test_pivots_are_those_of_a_pivoted_qr() -> None:
    matrix = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix[:, 1] = matrix[:, 0] + 0.01 * matrix[:, 1]
    matrix[:, 7] *= 3
    chosen = pivots(matrix)
    assert len(set(chosen)) == 6
    assert chosen[0] == 7
    best = torch.linalg.cond(matrix[:, chosen])
    assert best < torch.linalg.cond(matrix[:, :6])


def test_heads_of_one_odd_channel_count_work(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "gpt2", n_embd=45, n_head=5, n_layer=2, n_positions=64)
    _, out = convert_with(source, "matshrink")
    a, b = answers(source), answers(out)
    assert (a - b).abs().max() <= 1e-11 * a.abs().max()


def test_a_saved_again_model_loads(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    _, out = convert_with(source, "matshrink")
    load(out).save_pretrained(tmp_path / "again")
    for file in out.glob("*.py"):
        (tmp_path / "again" / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert model.num_parameters() == load(out).num_parameters()


def test_heads_too_small_to_tell_lead_to_a_wider_specimen(tmp_path: Path) -> None:
    """Sizes that are powers of two shrink to heads of one channel, of which nothing can be told."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=8,
        num_hidden_layers=1, vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    _, (block,) = attention_of(subject_of(read_checkpoint(tmp_path)))
    assert [head.value.size >= LEAST_HEAD for head in block.heads] == [True] * 8
