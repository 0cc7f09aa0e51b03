"""The verdict on clean and damaged conversions."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from evals import Evidence, Verdict, compare
from tricks import BadInput, Cancelled

LAYER = "model.layers.1."


def failed(evidence: Evidence) -> set[str]:
    return {check.name for check in evidence.checks if not check.passed}


def swap_heads(name, heads=4):
    def edit(tensors):
        blocks = list(tensors[name].chunk(heads, dim=0))
        blocks[0], blocks[1] = blocks[1], blocks[0]
        tensors[name] = torch.cat(blocks)

    return edit


def again(gain_of, scale_source, norm, linears):
    """Fold one norm's gain a second time."""

    def edit(tensors):
        gain = gain_of(scale_source, norm)
        for linear in linears:
            tensors[linear] = (tensors[linear].double() * gain).to(tensors[linear].dtype)

    return edit


def test_a_model_is_equivalent_to_itself(random_llama):
    evidence = compare(random_llama, random_llama, tokens=300)
    assert evidence.verdict is Verdict.EQUIVALENT
    assert evidence.wide.identical
    assert evidence.wide.divergence == 0
    assert evidence.generation.identical
    assert evidence.decode.identical
    assert evidence.storage.divergence == evidence.floors[0].divergence > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_clean_fold_is_equivalent_in_every_storage_dtype(llama_of, folded, dtype):
    source = llama_of(dtype)
    evidence = compare(source, folded(source), tokens=600)
    assert evidence.verdict is Verdict.EQUIVALENT, evidence.reasons
    assert not evidence.wide.identical
    assert evidence.reasons == ()
    assert evidence.settings["wide_dtype"] == ("float64" if dtype == torch.float32 else "float32")


def test_a_clean_fold_of_the_trained_model_is_equivalent(tiny_llama, folded):
    evidence = compare(tiny_llama, folded(tiny_llama), tokens=768)
    assert evidence.verdict is Verdict.EQUIVALENT, evidence.reasons
    assert evidence.perplexity.source < 100
    assert abs(evidence.perplexity.difference) < 1e-3
    assert evidence.perplexity.tokens == evidence.settings["tokens"] == evidence.wide.positions


@pytest.mark.parametrize("layer", [0, 5])
def test_a_gain_folded_twice_in_one_layer_of_the_trained_model_is_caught(tiny_llama, folded, gain_of, layer):
    prefix = f"model.layers.{layer}."
    norm, linear = f"{prefix}input_layernorm.weight", f"{prefix}self_attn.k_proj.weight"
    evidence = compare(tiny_llama, folded(tiny_llama, again(gain_of, tiny_llama, norm, [linear])), tokens=512)
    assert evidence.verdict is Verdict.DIFFERENT
    assert "KL divergence in float32" in failed(evidence)
    assert any("KL divergence" in reason for reason in evidence.reasons)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_swapped_heads_of_one_projection_are_caught(random_llama, folded, projection):
    damage = swap_heads(f"{LAYER}self_attn.{projection}.weight")
    evidence = compare(random_llama, folded(random_llama, damage), tokens=300)
    assert evidence.verdict is Verdict.DIFFERENT


def test_a_gain_folded_twice_into_one_linear_is_caught(random_llama, folded, gain_of):
    damage = again(
        gain_of, random_llama, f"{LAYER}post_attention_layernorm.weight", [f"{LAYER}mlp.up_proj.weight"]
    )
    assert compare(random_llama, folded(random_llama, damage), tokens=300).verdict is Verdict.DIFFERENT


def test_a_zeroed_bias_is_caught(random_llama, folded):
    def damage(tensors):
        tensors[f"{LAYER}self_attn.q_proj.bias"].zero_()

    assert compare(random_llama, folded(random_llama, damage), tokens=300).verdict is Verdict.DIFFERENT


def test_a_bias_that_is_missing_from_the_files_is_named(random_llama, folded):
    def damage(tensors):
        del tensors[f"{LAYER}self_attn.q_proj.bias"]

    evidence = compare(random_llama, folded(random_llama, damage), tokens=300)
    assert evidence.verdict is Verdict.DIFFERENT
    assert f"{LAYER}self_attn.q_proj.bias" in evidence.reasons[0]


def test_one_wrong_row_of_the_vocabulary_is_caught_by_its_own_check(random_llama, folded):
    def damage(tensors):
        tensors["lm_head.weight"][7] = tensors["lm_head.weight"][8]

    evidence = compare(random_llama, folded(random_llama, damage), tokens=300)
    assert evidence.verdict is Verdict.DIFFERENT
    assert "largest RMS difference of one vocabulary entry in float32" in failed(evidence)


def test_another_rope_base_is_caught(random_llama, folded, set_config):
    converted = folded(random_llama)
    set_config(converted, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert compare(random_llama, converted, tokens=300).verdict is Verdict.DIFFERENT


def test_one_nan_in_the_converted_model_is_different(random_llama, folded):
    def damage(tensors):
        tensors[f"{LAYER}mlp.down_proj.weight"][3, 5] = float("nan")

    evidence = compare(random_llama, folded(random_llama, damage), tokens=100)
    assert evidence.verdict is Verdict.DIFFERENT
    assert evidence.wide.not_finite > 0
    assert any("NaN" in reason for reason in evidence.reasons)
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json(), allow_nan=False))).wide.not_finite > 0


def test_overflow_that_shows_in_float16_alone_is_different(llama_of, edited):
    """A power of two moved from one linear to the next changes nothing but what float16 has to hold in
    between."""
    source = llama_of(torch.float16)

    def move(tensors):
        tensors[f"{LAYER}mlp.up_proj.weight"].mul_(2.0**14)
        tensors[f"{LAYER}mlp.down_proj.weight"].mul_(2.0**-14)

    evidence = compare(source, edited(source, move), tokens=200)
    assert evidence.verdict is Verdict.DIFFERENT
    assert evidence.storage.not_finite > 0
    assert evidence.wide.not_finite == 0


def test_another_vocabulary_is_different(llama_of):
    evidence = compare(llama_of(), llama_of(vocabulary=310), tokens=100)
    assert evidence.verdict is Verdict.DIFFERENT
    assert "310 tokens, the source over 300" in evidence.reasons[0]
    assert evidence.wide is None
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_without_a_tokenizer_random_ids_are_used_and_said(random_llama, folded):
    evidence = compare(random_llama, folded(random_llama), tokens=100)
    assert evidence.perplexity is None
    assert "random token ids" in evidence.notes[0]
    with pytest.raises(BadInput, match="no tokenizer"):
        compare(random_llama, random_llama, text=__file__)


def test_evidence_survives_json(tiny_llama, folded):
    evidence = compare(tiny_llama, folded(tiny_llama), tokens=200)
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json(), allow_nan=False))) == evidence
    names = [name for name, _ in evidence.headline()]
    assert {
        "perplexity",
        "greedy generation through the cache",
        "KL divergence in float32",
        "what this text could have missed",
    } <= set(names)
    with pytest.raises(ValueError, match="schema 99"):
        Evidence.from_json(evidence.to_json() | {"schema": 99})


def test_an_approximate_conversion_is_held_to_its_budget(random_llama, edited):
    def coarse(tensors):
        name = f"{LAYER}mlp.up_proj.weight"
        tensors[name] = (tensors[name] * 16).round() / 16

    converted = edited(random_llama, coarse)
    measured = compare(random_llama, converted, tokens=300, lossless=False)
    assert measured.verdict is Verdict.DIFFERENT
    assert "no budget" in measured.reasons[-1]
    kl = measured.storage.divergence

    def with_budget(**budget):
        return compare(random_llama, converted, tokens=300, lossless=False, budget=budget).verdict

    assert with_budget(kl=2 * kl) is Verdict.WITHIN_BUDGET
    assert with_budget(kl=2 * kl, top1=1.0) is Verdict.DIFFERENT
    assert with_budget(kl=kl / 2) is Verdict.DIFFERENT


def test_progress_reaches_its_total_and_can_cancel(random_llama):
    told = []
    compare(random_llama, random_llama, tokens=100, report=lambda *args: told.append(args))
    assert told[0][:2] == ("tokens", 0)
    assert told[-1][1] == told[-1][2]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)

    def stop(unit, done, total):
        if done:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        compare(random_llama, random_llama, tokens=100, report=stop)


def test_bad_requests_get_one_clear_line(random_llama, tiny_llama, edited, tmp_path):
    (tmp_path / "empty").mkdir()
    short, empty = tmp_path / "short.txt", tmp_path / "empty.txt"
    short.write_text("a")
    empty.write_text(" ")
    for run, line in [
        (lambda: compare(tmp_path / "empty", random_llama), "no config.json"),
        (lambda: compare(random_llama, tmp_path / "nothing"), "no config.json"),
        (lambda: compare(random_llama, random_llama, budget={"kl": 1.0}), "no budget"),
        (
            lambda: compare(random_llama, random_llama, lossless=False, budget={"kll": 1.0}),
            "unknown budget 'kll'",
        ),
        (lambda: compare(tiny_llama, tiny_llama, text=str(short)), "at least two"),
        (lambda: compare(tiny_llama, tiny_llama, text=str(empty)), "holds no text"),
        (lambda: compare(tiny_llama, tiny_llama, text=str(tmp_path / "no.jsonl")), "is no file"),
        (lambda: compare(tiny_llama, tiny_llama, tokens=1), "at least 2"),
    ]:
        with pytest.raises(BadInput, match=line) as caught:
            run()
        assert "\n" not in str(caught.value)


def test_a_damaged_source_is_bad_input(random_llama, edited, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][0] = float("inf")

    with pytest.raises(BadInput, match="NaN or infinite"):
        compare(edited(random_llama, damage), random_llama, tokens=50)


def test_a_truncated_shard_is_bad_input(random_llama, edited):
    converted = edited(random_llama)
    file = next(converted.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadInput, match="cannot be read"):
        compare(random_llama, converted, tokens=50)


def test_a_tensor_missing_from_the_source_is_bad_input(random_llama, edited):
    source = edited(random_llama)
    file = next(source.glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="lacks weights"):
        compare(source, random_llama, tokens=50)


def test_code_in_a_source_is_never_run(random_llama, edited, set_config, tmp_path):
    source = edited(random_llama)
    mark = tmp_path / "ran"
    (source / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (source / "conversion.json").write_text('{"files": {"modeling_evil.py": ""}}')
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    set_config(source, model_type="evil", architectures=["EvilForCausalLM"], auto_map=auto_map)
    with pytest.raises(BadInput):
        compare(source, random_llama, tokens=50)
    assert not mark.exists()
