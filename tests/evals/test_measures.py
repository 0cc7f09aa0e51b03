"""The single measures: windows, divergences, perplexity, generation, tokenizers, limits."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.generation import Continuations, compare_continuations
from evals.logits import LogitComparison, kl_divergence
from evals.perplexity import paired_perplexity, token_losses
from evals.recipe import RECIPES, reaching
from evals.text import held_out, text_tokens
from evals.tokenizer import load_tokenizer, tokenizer_changes
from evals.verdict import Check
from evals.windows import chunks, pairs, scored_tokens, windows
from tricks import exact_tokens


@given(
    count=st.integers(2, 200),
    length=st.integers(3, 40),
    stride=st.integers(1, 40),
    first=st.one_of(st.none(), st.just(998)),
    lead=st.one_of(st.none(), st.just(999)),
)
def test_windows_score_every_token_once_with_its_own_past(count, length, stride, first, lead):
    stride = min(stride, length - (lead is not None))
    ids = torch.arange(count)
    cut = list(windows(ids, length, stride, first, lead))
    targets = torch.cat([window.targets for window in cut]).tolist()
    assert targets == list(range(0 if first is not None else 1, count))
    assert len(targets) == scored_tokens(cut)
    for window in cut:
        assert len(window.targets) <= len(window.inputs) <= length
        last = int(window.targets[-1])
        assert int(window.inputs[-1]) == (last - 1 if last else first)
        past = window.inputs.tolist()
        begin = past[1] if past[0] in (998, 999) and len(past) > 1 else past[0]
        if begin not in (998, 999):
            assert past[-(last - begin) :] == list(range(begin, last))
    for window in cut[1:]:
        assert len(window.inputs) - len(window.targets) >= min(length - stride - 1, 1)
        assert lead is None or int(window.inputs[0]) in (lead, first, 0)


@given(count=st.integers(1, 300), length=st.integers(2, 50))
def test_windows_without_overlap_are_those_of_lm_eval(count, length):
    ids = torch.arange(count)
    theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids.tolist(), 999, length, 1)]
    ours = [
        (
            (window.inputs.tolist() + window.targets.tolist()[-1:])[: -len(window.targets)],
            window.targets.tolist(),
        )
        for window in windows(ids, length, length, first=999)
    ]
    assert ours == [(context, continuation) for context, continuation in theirs]


def test_chunks_leave_each_first_token_unscored():
    cut = list(chunks(torch.arange(11), 5))
    assert [window.targets.tolist() for window in cut] == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert [window.inputs.tolist() for window in cut] == [[0, 1, 2, 3], [5, 6, 7, 8]]


def test_an_encoder_reads_what_the_decoder_goes_on_from():
    cut = list(pairs(torch.arange(10), 3, 2, 99))
    assert [window.encoder.tolist() for window in cut] == [[0, 1, 2], [5, 6, 7]]
    assert [window.inputs.tolist() for window in cut] == [[99, 3], [99, 8]]
    assert [window.targets.tolist() for window in cut] == [[3, 4], [8, 9]]


def test_perplexity_of_one_window_is_what_transformers_computes(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = text_tokens(AutoTokenizer.from_pretrained(tiny_llama), held_out(), 200, "").ids
    with torch.inference_mode():
        output = model(input_ids=ids[None], labels=ids[None])
    losses = token_losses(output.logits[0, :-1], ids[1:])
    result = paired_perplexity(losses, losses, "some text")
    assert result.source == pytest.approx(math.exp(output.loss), rel=1e-5)
    assert result.difference == result.standard_error == result.low == result.high == result.largest == 0


def test_divergence_agrees_with_torch_and_keeps_its_digits_when_tiny():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 50, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none"
    )
    assert torch.allclose(kl_divergence(a, b), expected.sum(-1), rtol=1e-12)
    # To second order the divergence is half the variance of the difference.
    step = 1e-9 * (b - a)
    p = a.softmax(-1)
    half_variance = ((p * step.square()).sum(-1) - (p * step).sum(-1).square()) / 2
    assert torch.allclose(kl_divergence(a, a + step), half_variance, rtol=1e-5, atol=0)


def test_differences_add_up_over_windows_and_leave_out_masked_tokens():
    a, b = torch.zeros(3, 4), torch.zeros(3, 4)
    b[1, 2] = 2.0
    a[:, 3] = torch.finfo(torch.float32).min
    b[:, 3] = torch.finfo(torch.bfloat16).min
    comparison = LogitComparison("a", "b")
    for row in range(3):
        comparison.add(a[row : row + 1], b[row : row + 1])
    result = comparison.result()
    assert result.positions == 3
    assert result.largest == 2.0
    assert result.mean == pytest.approx(2 / 9)
    assert result.rms == pytest.approx(math.sqrt(4 / 9))
    assert result.top1 == pytest.approx(2 / 3)
    assert math.isfinite(result.divergence)
    assert not result.identical


def test_one_nan_spoils_every_figure():
    a = torch.zeros(2, 4)
    comparison = LogitComparison("a", "b")
    comparison.add(a, torch.tensor([[0, 0, 0, 0], [0, math.nan, 0, 0]]))
    result = comparison.result()
    assert result.not_finite == 1
    assert math.isnan(result.divergence)
    assert math.isnan(result.largest)
    assert not result.identical


def test_a_check_keeps_its_limit_when_it_reaches_it_and_never_with_nan():
    assert Check("x", 1.0, 1.0).passed
    assert not Check("x", 1.1, 1.0).passed
    assert Check("x", 0.9, 0.8, least=True).passed
    assert not Check("x", math.nan, 1.0).passed
    assert not Check("x", 1.0, math.nan).passed
    assert not Check("x", math.nan, math.nan, least=True).passed


def test_generation_tells_where_texts_part_and_how_sure_the_source_was():
    def step(best, second, lead):
        logits = torch.zeros(12)
        logits[best], logits[second] = 20.0, 20.0 - lead
        return logits

    logits = torch.stack([torch.stack([step(t, 11, 5.0) for t in row]) for row in ((1, 2, 3), (4, 5, 6))])
    logits[1, 1] = step(5, 9, 0.5)
    source = Continuations(torch.tensor([[1, 2, 3], [4, 5, 6]]), logits)
    led = logits.clone()
    led[1, 1] = step(9, 5, 0.5)
    other = Continuations(source.tokens, led)
    result = compare_continuations(source, other, 8)
    assert (result.same, result.prompts, result.first_divergence, result.lead) == (1, 2, 1, 0.5)
    assert compare_continuations(source, source, 8).identical


def test_tokenizers_are_compared_by_bytes_then_by_meaning(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert tokenizer_changes(tiny_llama, copy) == ([], [])
    rules = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    wrong, notes = tokenizer_changes(tiny_llama, copy)
    assert not wrong
    assert "written differently" in notes[0]


def test_a_tokenizer_that_changed_or_is_gone_is_named(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    rules = json.loads((copy / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    wrong, _ = tokenizer_changes(tiny_llama, copy)
    assert "rules" in wrong[0]
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert load_tokenizer(copy) is None
    wrong, _ = tokenizer_changes(tiny_llama, copy)
    assert "no tokenizer" in wrong[0]


def test_an_added_token_lost_from_the_file_is_named_though_transformers_puts_it_back(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    rules = json.loads((copy / "tokenizer.json").read_text())
    rules["added_tokens"] = rules["added_tokens"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    wrong, _ = tokenizer_changes(tiny_llama, copy)
    assert "tokens" in wrong[0]


def test_a_text_is_longer_than_what_a_lossy_attention_keeps() -> None:
    """Else nothing that it loses is seen, and any budget is kept."""
    exact = exact_tokens(["flashnorm", "approximate:window=1000,sinks=24,kl=0.1", "of-the-future:a=b"])
    assert exact == 1024
    assert reaching(RECIPES["quick"], exact).window == 2048
    assert reaching(RECIPES["quick"], exact).tokens >= 4096
    assert reaching(RECIPES["quick"], exact_tokens(["slim"])) == RECIPES["quick"]
