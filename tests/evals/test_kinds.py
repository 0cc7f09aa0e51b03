"""Models other than decoders: each kind against itself and against a damaged copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from evals import Verdict, compare
from tricks import BadInput

WIDTH, VOCABULARY = 64, 200
BERT = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    num_labels=5,
)
MODELS = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "whisper": lambda: WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_source_positions=100,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
            begin_suppress_tokens=None,
        )
    ),
    "bert": lambda: BertForMaskedLM(BERT),
    "classes": lambda: BertForSequenceClassification(BERT),
    "experts": lambda: MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    ),
}
DAMAGED = {
    "t5": "decoder.block.1.layer.1.EncDecAttention.k.weight",
    "whisper": "model.decoder.layers.1.encoder_attn.v_proj.weight",
    "bert": "bert.encoder.layer.1.attention.self.query.weight",
    "classes": "classifier.weight",
    "experts": "model.layers.1.self_attn.v_proj.weight",
}


@pytest.fixture(params=MODELS)
def kind(request, tmp_path: Path) -> tuple[str, Path]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(tmp_path / request.param)
    return request.param, tmp_path / request.param


def test_every_kind_is_equivalent_to_itself_and_different_when_damaged(kind, edited):
    name, source = kind
    same = compare(source, source, tokens=600)
    assert same.verdict is Verdict.EQUIVALENT, same.reasons
    assert same.wide.identical
    assert (same.decode is not None) == (name in ("t5", "whisper", "experts"))

    def damage(tensors):
        weight = tensors[DAMAGED[name]]
        tensors[DAMAGED[name]] = weight.roll(4, dims=0)

    assert compare(source, edited(source, damage), tokens=600).verdict is Verdict.DIFFERENT


def test_experts_stored_in_float32_are_judged_in_float64(tmp_path):
    torch.manual_seed(0)
    MODELS["experts"]().save_pretrained(tmp_path / "moe")
    evidence = compare(tmp_path / "moe", tmp_path / "moe", tokens=100)
    assert evidence.verdict is Verdict.EQUIVALENT
    assert evidence.settings["wide_dtype"] == "float64"


def test_a_speech_model_reads_its_own_extractors_features_at_its_own_length(edited):
    source = Path(__file__).parents[2] / "models" / "wirings" / "whisper"
    same = compare(source, source, tokens=100)  # its extractor makes 3,000 frames; the model reads 256
    assert same.verdict is Verdict.EQUIVALENT
    assert same.decode is not None

    def damage(tensors):
        name = "model.encoder.layers.1.self_attn.v_proj.weight"
        tensors[name] = tensors[name].roll(4, dims=0)

    assert compare(source, edited(source, damage), tokens=100).verdict is Verdict.DIFFERENT


def test_an_extractor_that_does_not_belong_to_its_model_is_one_clear_line(edited):
    source = Path(__file__).parents[2] / "models" / "wirings" / "whisper"
    other = edited(source)
    file = other / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"feature_size": 16', '"feature_size": 80'))
    with pytest.raises(BadInput, match="cannot be run"):
        compare(other, other, tokens=100)
