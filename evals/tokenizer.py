"""Tokenizers: loading the source's, and whether the converted folder's still is the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evals.models import quiet

Tokenizer = PreTrainedTokenizerBase

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
_BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None where it has none that loads without remote code."""
    if not any((folder / name).is_file() for name in FILES):
        return None
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
    except Exception:  # noqa: BLE001
        # A missing package or an unknown class; tokenizers raises bare Exception. Random ids do.
        return None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def tokenizer_changes(source: Path, converted: Path) -> tuple[list[str], list[str]]:
    """What is wrong with the converted folder's tokenizer, and what is merely written differently.

    A conversion copies these files byte for byte, and then there is nothing to say. Files of the same content
    in another spelling (a `save_pretrained` in between) are no change; a token, a rule or a template that
    differs is.
    """
    wrong: list[str] = []
    differing: list[str] = []
    for name in FILES:
        ours, theirs = _bytes(source / name), _bytes(converted / name)
        if ours != theirs:
            differing.append(name)
    if not differing:
        return [], []
    names = ", ".join(differing)
    before, after = load_tokenizer(source), load_tokenizer(converted)
    if before is None and after is None:
        wrong.append(f"tokenizer files differ and cannot be loaded to compare: {names}")
    elif before is None or after is None:
        wrong.append(
            f"the {'source' if before is None else 'converted model'} has no tokenizer that loads: {names}"
        )
    else:
        meaning_before, meaning_after = _meaning(before), _meaning(after)
        changed = [part for part in meaning_before if meaning_before[part] != meaning_after[part]]
        # What another library reads, and says nothing of: it is copied byte for byte, or it is another one.
        if not changed and any(name in _BINARY for name in differing):
            changed = ["model"]
        # transformers puts a lost one back from tokenizer_config.json; other readers of the file do not.
        if not changed and _added(source) != _added(converted):
            changed = ["added tokens"]
        if changed:
            wrong.append(f"the tokenizer differs from the source's in its {', '.join(changed)} ({names})")
        else:
            return [], [f"tokenizer files are written differently but mean the same: {names}"]
    return wrong, []


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _added(folder: Path) -> list[tuple[str, int]] | None:
    """The added tokens that `tokenizer.json` itself holds; None without such a file."""
    written = _bytes(folder / "tokenizer.json")
    if written is None:
        return None
    added = json.loads(written).get("added_tokens") or []
    return sorted((str(token["content"]), int(token["id"])) for token in added)


def _meaning(tokenizer: Tokenizer) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "rules": backend.to_str() if backend is not None else type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "leading tokens": tokenizer("a")["input_ids"],
        "limits": [tokenizer.model_max_length, tokenizer.model_input_names],
        "padding": [tokenizer.padding_side, tokenizer.truncation_side],
        "spaces": getattr(tokenizer, "clean_up_tokenization_spaces", None),
        "chat template": tokenizer.chat_template,
    }
