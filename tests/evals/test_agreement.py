"""Perplexity against the figures of others: lm-eval's `wikitext`, and transformer-tricks' `perplexity`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from evals import Recipe, compare
from evals.perplexity import chunk_perplexity, token_losses
from evals.text import held_out, load_text, text_tokens
from evals.tokenizer import load_tokenizer
from evals.windows import chunks

# The post-processing of lm-eval's wikitext task, on local text.
TASK = """\
task: local_wikitext
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: page
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
PEER = "transformer-tricks==0.4.1"


def test_our_figures_are_those_of_lm_evals_wikitext(llama_in_float32, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    text = held_out()[:6000]
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "data.jsonl").write_text(json.dumps({"page": text}) + "\n")
    task = tmp_path / "local_wikitext.yaml"
    task.write_text(TASK.format(data=tmp_path / "data.jsonl"))
    recipe = Recipe(tokens=10**6, cut="rolling", text=str(tmp_path / "text.txt"), tasks=(str(task),))
    evidence = compare(llama_in_float32, llama_in_float32, recipe=recipe)
    theirs = {metric.name: metric.source for metric in evidence.tasks[0].metrics}
    ours = evidence.perplexity
    assert ours.source_bits_per_byte == pytest.approx(theirs["bits_per_byte"], rel=1e-5)
    assert 2**ours.source_bits_per_byte == pytest.approx(theirs["byte_perplexity"], rel=1e-5)
    assert ours.source_word_perplexity == pytest.approx(theirs["word_perplexity"], rel=1e-4)
    assert ours.bytes == len(text.encode())


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, in a folder of its own."""
    folder = tmp_path_factory.mktemp("peer")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), PEER]
    if subprocess.run(pip, capture_output=True, timeout=120).returncode:
        pytest.skip(f"{PEER} is out of reach")
    return folder


def test_our_figure_is_that_of_transformer_tricks(llama_in_float32, peer, tmp_path):
    (tmp_path / "text.txt").write_text(held_out()[:6000])
    # Its text is WikiText-2 from the Hub; it is given ours by way of the same call.
    code = (
        f"import sys; sys.path.insert(0, {str(peer)!r})\n"
        "import transformer_tricks as tt\n"
        f"text = open({str(tmp_path / 'text.txt')!r}).read()\n"
        "tt.datasets.load_dataset = lambda *args, **kwargs: {'text': [text]}\n"
        f"tt.perplexity({str(llama_in_float32)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    theirs = float(done.stdout.split("perplexity =")[1].split()[0])

    tokenizer = load_tokenizer(llama_in_float32)
    ids = text_tokens(tokenizer, held_out()[:6000], 10**6, "", special=True).ids
    model = AutoModelForCausalLM.from_pretrained(llama_in_float32, dtype=torch.float32).eval()
    losses = []
    with torch.inference_mode():
        for window in chunks(ids, model.config.max_position_embeddings):
            losses.append(token_losses(model(input_ids=window.inputs[None]).logits[0], window.targets))
    assert chunk_perplexity(losses) == pytest.approx(theirs, abs=2e-3)
    assert math.isfinite(theirs)


def test_a_text_comes_from_a_file_or_a_column(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.csv").write_text("text,other\nfirst,1\nsecond,2\n")
    assert load_text(str(tmp_path / "a.txt")) == "one text"
    assert load_text(str(tmp_path / "b.csv")) == "first\n\nsecond"
    assert load_text(f"{tmp_path / 'b.csv'}#other") == "1\n\n2"
