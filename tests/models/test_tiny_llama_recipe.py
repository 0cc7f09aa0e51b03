from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from models.corpus import (
    HELDOUT_FILES,
    Document,
    all_runs,
    comment_blocks,
    english_of,
    training_documents,
    without_quotations,
)
from models.train import make_config, save, token_stream, train, train_tokenizer

HELDOUT = HELDOUT_FILES[0].read_text(encoding="utf-8")


def test_the_package_ships_the_same_held_out_text() -> None:
    assert HELDOUT_FILES[1].read_text(encoding="utf-8") == HELDOUT
    assert 50_000 < len(HELDOUT) < 70_000


def test_no_document_to_train_on_quotes_the_held_out_text() -> None:
    """Checked on characters, not with the words that the corpus is filtered by."""
    lines = {line.strip() for line in HELDOUT.splitlines() if len(line.split()) >= 10}
    assert len(lines) > 300
    documents = list(training_documents(HELDOUT))
    assert {document.kind for document in documents} == {"topic", "english", "source"}
    assert sum(len(document.text) for document in documents) > 5_000_000
    quoted = {line.strip() for document in documents for line in document.text.splitlines()} & lines
    assert quoted == set()


def test_a_quotation_is_found_whatever_its_line_breaks_and_case() -> None:
    heldout = "one two three four five six seven eight nine ten eleven\n\nshort paragraph of five words"
    quoting = "Zero ONE two, three\nfour five six seven eight nine ten!"
    text = f"kept before\n\n{quoting}\n\nShort paragraph\nof five words\n\nkept after"
    assert without_quotations(text, all_runs(heldout)) == "kept before\n\nkept after\n"


def test_english_is_docstrings_and_comment_blocks_without_code() -> None:
    source = '"""Title."""\n\n# first\n# second\nx = 1  # beside\n# alone\n\ndef f():\n    """Do it."""\n'
    assert english_of(source) == "Title.\n\nDo it.\n\nfirst\nsecond"
    assert list(comment_blocks("# alone\n")) == []
    assert english_of("def broken(:\n") == ""


def test_the_recipe_learns_and_saves_a_model_that_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = re.sub(r"\n+", "\n", HELDOUT)
    documents = [Document("topic", "t", words), Document("source", "s", "x = 1\n")]
    tokenizer = train_tokenizer(documents)
    model = LlamaForCausalLM(make_config())
    options = argparse.Namespace(
        steps=6, batch=2, lr=2e-3, gain_lr=1e-2, weight_decay=0.1, seed=0, compile=False
    )
    losses = train(model, token_stream(tokenizer, documents, 0), options)
    assert losses[-1][1] < losses[0][1] - 0.3

    save(model, tokenizer, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for shard in tmp_path.glob("*.safetensors"):
        with safe_open(shard, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path)("hello")["input_ids"][0] == 0
