"""Slim attention on trained models of seven wirings: what it decodes, what its cache holds and refuses."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._inductor.cpp_builder import get_cpp_compiler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    StaticCache,
)

from evals import Evidence, compare
from models.evaluate import HELDOUT
from models.sounds import codebook, spoken
from tricks import BadInput, Conversion, Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.shipped.modeling_slim import cache_bytes
from tricks.slim import mirrored

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
    """Greedy, beams, sampling, a batch with left padding; float32 hides none of the cache's own losses."""
    _, folder = slim(name)
    source, result = load(name, FOLDERS[name]), load(name, folder)
    ids = text(name, 24)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    ids[0, :9] = 1
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True}):
        said = [
            torch.manual_seed(0)
            and model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=20,
                min_new_tokens=20,
                pad_token_id=1,
                **{"do_sample": False, **options},
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


def test_a_cache_goes_on_in_the_next_call(slim: Any) -> None:
    """A conversation: generate, then generate again with what was said and the same cache."""
    model = load("llama", slim("llama")[1])
    ids = text("llama", 20)[:1]
    options = {"do_sample": False, "pad_token_id": 1, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=6, **options)
    longer = torch.cat([first.sequences, text("llama", 30)[:1, 20:]], 1)
    again = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=8, **options)
    fresh = model.generate(longer, max_new_tokens=8, **options)
    assert torch.equal(again.sequences, fresh.sequences)


@pytest.mark.parametrize(("name", "trick"), [("llama", "slim"), ("gpt2", "slim")])
def test_a_decoding_step_compiles_whole(name: str, trick: str, slim: Any) -> None:
    """Caching K (llama) and caching V (gpt2), in one graph each."""
    model = load(name, slim(name, trick)[1], torch.bfloat16)
    ids = text(name, 16)[:1]
    said = []
    with torch.no_grad():
        for step in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
            cache = StaticCache(config=model.config, max_cache_len=32)
            model(ids, past_key_values=cache, use_cache=True)
            for place in (16, 17):
                where = torch.tensor([[place]])
                out = step(ids[:, :1], past_key_values=cache, use_cache=True, position_ids=where)
            said.append(out.logits)
    assert torch.allclose(*said, atol=0.02 * float(said[0].abs().max()))


def compiler() -> str:
    """Why nothing can be compiled for this machine's CPU; "" where it can."""
    try:
        get_cpp_compiler()
    except Exception as error:  # noqa: BLE001 - it names what it lacks
        return str(error).splitlines()[0]
    return ""


@pytest.mark.skipif(bool(compiler()), reason=f"no C++ compiler: {compiler()}")
def test_steps_compiled_by_inductor_say_what_eager_steps_say(tmp_path: Path) -> None:
    """One trained layer, for compiling takes its time; a static cache, error feedback and residual."""
    short = load("llama", FOLDERS["llama"], torch.bfloat16)
    short.model.layers = short.model.layers[:1]
    short.config.num_hidden_layers = 1
    short.save_pretrained(tmp_path / "source")
    for file in FOLDERS["llama"].glob("token*"):
        shutil.copy(file, tmp_path / "source")
    plan = make_plan(read_checkpoint(tmp_path / "source"), [parse_trick("slim:residual=16")])
    convert(plan, tmp_path / "source", tmp_path / "out")
    model = load("llama", tmp_path / "out")
    said = []
    with torch.no_grad():
        for step in (model, torch.compile(model, backend="inductor", fullgraph=True)):
            cache = StaticCache(config=model.config, max_cache_len=48)
            logits = [model(text("llama", 16), past_key_values=cache, use_cache=True).logits[:, -1:]]
            for place in range(16, 40):
                where = torch.tensor([[place]])
                best = logits[-1].argmax(-1)
                given = {"past_key_values": cache, "use_cache": True, "position_ids": where}
                logits.append(step(best, **given).logits)
            said.append(torch.cat(logits, 1))
    assert torch.equal(said[0].argmax(-1), said[1].argmax(-1))
    assert torch.allclose(*said, atol=1e-3 * float(said[0].abs().max()))


def test_an_8_bit_cache_holds_what_the_plan_says(slim: Any) -> None:
    plan, folder = slim("llama", "slim:cache=int8")
    ids = text("llama", 60)
    source, _ = decoded(load("llama", FOLDERS["llama"]), "llama", ids)
    found, cache = decoded(load("llama", folder, torch.bfloat16), "llama", ids)
    assert cache_bytes(cache) == ids.numel() * plan.savings["cache_bytes_per_token_after"]
    assert plan.savings["cache_bytes_per_token_after"] < 0.37 * plan.savings["cache_bytes_per_token_before"]
    assert divergence(source, found) < 2e-3


def test_values_are_cached_where_that_holds_better(slim: Any) -> None:
    plan, _ = slim("gpt2")
    modes = [spec["mode"] for spec in plan.config["tricksmith"]["slim"]["layers"]]
    assert "v" in modes
    assert all("condition number" in place.detail for place in plan.places)


def test_caching_values_by_choice_is_in_the_plans_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration may turn a layer to caching values once the plan is proven: the proof has tried that."""
    sound = mirrored
    monkeypatch.setattr("tricks.slim_settle.mirrored", lambda spec: {**sound(spec), "value": spec["key"]})
    for trick, refused in (("slim", True), ("slim:mode=k", False)):
        with pytest.raises(BadInput, match="failed its own proof") if refused else nullcontext():
            make_plan(read_checkpoint(FOLDERS["gpt2"]), [parse_trick(trick)])


def test_a_width_that_is_asked_for_is_kept(slim: Any) -> None:
    plan, _ = slim("gptneox", "slim:residual=24")
    assert {spec["residual"] for spec in plan.config["tricksmith"]["slim"]["layers"]} == {24}


def test_a_conversion_of_float32_refuses_16_bits(tmp_path: Path) -> None:
    model = load("gptneox", FOLDERS["gptneox"])
    model.save_pretrained(tmp_path / "wide")
    convert(
        make_plan(read_checkpoint(tmp_path / "wide"), [parse_trick("slim")]),
        tmp_path / "wide",
        tmp_path / "out",
    )
    narrow = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, trust_remote_code=True
    )
    with pytest.raises(ValueError, match="converted from weights in more than 16 bits"):
        narrow(text("gptneox", 8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: poison(folder, float("nan")), "hold NaN or Inf"),
    ],
)
def test_bad_sources_are_refused_in_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(FOLDERS["gptneox"], tmp_path / "source"))
    damage(source)
    plan = make_plan(read_checkpoint(source), [parse_trick("slim")])
    with pytest.raises(BadInput, match=message) as refused:
        convert(plan, source, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_too_short_a_calibration_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.txt").write_text("Too short to fit anything to.\n")
    monkeypatch.setattr("tricks.slim_observe.TEXT", tmp_path / "short.txt")
    plan = make_plan(read_checkpoint(FOLDERS["gptneox"]), [parse_trick("slim")])
    with pytest.raises(BadInput, match="2000 in 16 windows are the least"):
        convert(plan, FOLDERS["gptneox"], tmp_path / "out")


def test_a_singular_key_projection_is_held_by_the_residual(tmp_path: Path) -> None:
    """The paper's form has no inverse there; here the layer takes a wider residual, or stays as it was."""
    source = Path(shutil.copytree(FOLDERS["phi3"], tmp_path / "source"))
    poison(source, 0.0)
    done = convert(make_plan(read_checkpoint(source), [parse_trick("slim")]), source, tmp_path / "out")
    assert done.settled is not None
    ids = text("phi3", 60)
    exact, _ = decoded(load("phi3", source), "phi3", ids)
    found, _ = decoded(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32, trust_remote_code=True
        ).eval(),
        "phi3",
        ids,
    )
    assert divergence(exact, found) < 1e-3


def poison(folder: Path, value: float) -> None:
    """Some rows of a layer's keys as `value`."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, weight in tensors.items():
            if "layers.1." in name and ("qkv_proj" in name or "query_key_value.weight" in name):
                weight[100:120] = value
        save_file(tensors, file, metadata={"format": "pt"})


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


def test_evidence_reads_the_live_caches_in_the_storage_dtype(slim: Any) -> None:
    plan, folder = slim("gptneox")
    found = compare(FOLDERS["gptneox"], folder, lossless=plan.lossless, tricks=["slim"], tokens=2048)
    assert found.verdict.publishable, found.reasons
    cached = found.cached
    assert cached is not None
    assert cached.steps >= 300
    assert cached.bytes == cached.tokens * plan.savings["cache_bytes_per_token_after"]
    assert cached.bytes_source == cached.tokens * plan.savings["cache_bytes_per_token_before"]
    assert any("live cache" in name for name, _ in found.headline())
    assert Evidence.from_json(found.to_json()) == found
