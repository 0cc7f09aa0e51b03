"""Slim attention on trained models of seven wirings: what it decodes, what its cache holds and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoTokenizer

from models.evaluate import HELDOUT
from models.sounds import codebook, spoken
from tricks import Conversion, Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.shipped.modeling_slim import cache_bytes

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = {"llama": MODELS / "tiny-llama"} | {
    name: MODELS / "wirings" / name for name in ("gpt2", "gptneox", "olmo2", "phi3", "t5", "whisper")
}
AUTO = {"t5": AutoModelForSeq2SeqLM, "whisper": AutoModelForSpeechSeq2Seq}


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> (plan as settled, folder), each made once."""
    made: dict[str, tuple[Plan, Path]] = {}

    def make(name: str, trick: str = "slim") -> tuple[Plan, Path]:
        key = f"{name} {trick}"
        if key not in made:
            out = tmp_path_factory.mktemp("slim") / "out"
            plan = make_plan(read_checkpoint(FOLDERS[name]), [parse_trick(trick)])
            done: Conversion = convert(plan, FOLDERS[name], out)
            made[key] = (Plan.from_json(done.settled) if done.settled else plan), out
        return made[key]

    return make


def load(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    loader = AUTO.get(name, AutoModelForCausalLM)
    return loader.from_pretrained(folder, dtype=dtype, trust_remote_code=folder != FOLDERS[name]).eval()


def text(name: str, count: int) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
    ids = tokenizer(HELDOUT.read_text()[2000:9000], add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([ids[:count], ids[count : 2 * count]])


def inputs(name: str, ids: torch.Tensor, dtype: torch.dtype) -> tuple[dict[str, Any], str]:
    if name == "t5":
        return {"input_ids": ids[:, :50]}, "decoder_input_ids"
    if name == "whisper":
        return {"input_features": spoken(ids[:, :64], codebook(2048)).to(dtype)}, "decoder_input_ids"
    return {}, "input_ids"


@torch.no_grad()
def decoded(model: Any, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Logits of a prompt, a continued prefill and single tokens, all with one cache."""
    given, key = inputs(name, ids, model.dtype)
    first = ids.shape[1] // 3
    pieces = [ids[:, :first], ids[:, first : first + 7], *ids[:, first + 7 :].split(1, 1)]
    cache, logits = None, []
    for piece in pieces:
        out = model(**given, **{key: piece}, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1).float(), cache


def divergence(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


@pytest.mark.parametrize("name", FOLDERS)
def test_cached_decoding_stays_below_the_models_own_noise(name: str, slim: Any) -> None:
    plan, folder = slim(name)
    assert plan.fits
    assert plan.proof is not None
    assert plan.proof < 1e-9
    ids = text(name, 64 if name == "whisper" else 110)
    source, cache = decoded(load(name, FOLDERS[name]), name, ids)
    rounded, _ = decoded(load(name, FOLDERS[name], torch.bfloat16), name, ids)
    result, _ = decoded(load(name, folder), name, ids)
    assert divergence(source, result) < max(divergence(source, rounded), 2e-5)
    half, cache = decoded(load(name, folder, torch.bfloat16), name, ids)
    assert divergence(source, half) < 2.5 * divergence(source, rounded)
    if name not in ("t5", "whisper"):
        tokens = ids.numel()
        assert cache_bytes(cache) == tokens * plan.savings["cache_bytes_per_token_after"]


@pytest.mark.parametrize("name", ["llama", "gptneox"])
def test_generate_in_every_way_gives_the_sources_text(name: str, slim: Any) -> None:
    """Greedy, beams and a batch with left padding, in float32, where both round alike."""
    _, folder = slim(name)
    source, result = load(name, FOLDERS[name]), load(name, folder)
    ids = text(name, 24)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    ids[0, :9] = 1
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        said = [
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=20,
                min_new_tokens=20,
                do_sample=False,
                pad_token_id=1,
                **options,
            )
            for model in (source, result)
        ]
        agreement = (said[0] == said[1]).float().mean()
        assert agreement > 0.9, options


def test_a_cropped_and_a_reordered_cache_go_on_rightly(slim: Any) -> None:
    model = load("llama", slim("llama")[1])
    ids = text("llama", 40)
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        cache = model(ids[:, :39], use_cache=True).past_key_values
        extra = model(ids[:, :5], past_key_values=cache, use_cache=True).past_key_values
        extra.crop(-5)
        extra.reorder_cache(torch.tensor([1, 0]))
        again = model(ids[[1, 0], 39:], past_key_values=extra, use_cache=True).logits[:, -1]
    assert torch.allclose(again, whole[[1, 0]], atol=2e-3 * float(whole.abs().max()))


def test_a_static_cache_gives_the_same_text(slim: Any) -> None:
    model = load("llama", slim("llama")[1])
    ids = text("llama", 20)[:1]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "disable_compile": True}
    assert torch.equal(
        model.generate(ids, **options), model.generate(ids, cache_implementation="static", **options)
    )


def test_the_sources_cache_is_refused(slim: Any) -> None:
    ids = text("llama", 20)
    cache = load("llama", FOLDERS["llama"])(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled by the source model"):
        load("llama", slim("llama")[1])(ids[:, :1], past_key_values=cache)


def test_an_unknown_attention_implementation_is_refused(slim: Any) -> None:
    model = load("llama", slim("llama")[1])
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match="'eager' or 'sdpa'"):
        model(text("llama", 8))


def test_grouped_heads_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    from tests.tricks.small_models import save_model

    folder = save_model(tmp_path / "gqa", "llama")
    plan = make_plan(read_checkpoint(folder), [parse_trick("slim")])
    assert not plan.fits
    assert "48 numbers a token in 2 heads" in plan.places[0].detail


@pytest.mark.parametrize("mode", ["v", "x"])
def test_the_other_modes_hold_in_exact_arithmetic(mode: str, slim: Any) -> None:
    plan, folder = slim("gpt2", f"slim:mode={mode}")
    assert plan.proof is not None
    assert plan.proof < 1e-9
    ids = text("gpt2", 40)
    source, _ = decoded(load("gpt2", FOLDERS["gpt2"]), "gpt2", ids)
    result, _ = decoded(load("gpt2", folder), "gpt2", ids)
    assert divergence(source, result) < 2e-4
