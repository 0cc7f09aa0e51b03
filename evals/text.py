"""The tokens on which both models are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from evals.tokenizer import Tokenizer
from tricks import BadInput

HELD_OUT = Path(__file__).with_name("heldout.txt")


@dataclass(frozen=True)
class Tokens:
    """Token ids `(tokens,)` int64 on the CPU, and what every window starts with.

    `bos` is the id that the tokenizer itself puts in front of a text, None where it puts none. `random` says
    that the ids were drawn at random, so that a perplexity on them means nothing.
    """

    ids: torch.Tensor
    bos: int | None
    random: bool
    origin: str


def held_out() -> str:
    """English text (chapters of Python's manual) that the project's own model was not trained on."""
    return HELD_OUT.read_text(encoding="utf-8")


def text_tokens(tokenizer: Tokenizer, text: str, limit: int, origin: str) -> Tokens:
    """The first `limit` tokens of `text`.

    Raises:
        BadInput: the text has fewer than two tokens.
    """
    # Tokenising much more than is used costs minutes on a slow tokenizer; no text has 16 characters a token.
    ids = tokenizer(text[: 16 * limit], add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise BadInput(f"the text has {len(ids)} token(s); give a text of at least two tokens")
    return Tokens(torch.tensor(ids[:limit], dtype=torch.int64), leading_token(tokenizer), False, origin)


def leading_token(tokenizer: Tokenizer) -> int | None:
    """The begin-of-text id, when the tokenizer adds one by itself."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return int(bos) if ids and bos is not None and ids[0] == bos else None


def random_tokens(vocabulary: int, limit: int, seed: int = 0) -> Tokens:
    """`limit` ids drawn uniformly: for a model without a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        torch.randint(vocabulary, (limit,), generator=generator), None, True, f"random ids, seed {seed}"
    )
