"""The tokens on which both models are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from evals.hub_data import out_of_reach
from evals.tokenizer import Tokenizer
from tricks import BadInput, Cancelled

HELD_OUT = Path(__file__).with_name("heldout.txt")
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1@test#text"
_TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Tokens:
    """Token ids `(tokens,)` int64 on the CPU, and what stands before them.

    `first` is the token before the first one (begin-of-text, or where there is none end-of-text, as in
    lm-evaluation-harness), so that every token is scored. `lead` leads every later window too: the
    begin-of-text id where the tokenizer itself puts one in front of a text. `random` says that the ids were
    drawn at random, so that a perplexity on them means nothing.
    """

    ids: torch.Tensor
    first: int | None
    lead: int | None
    random: bool
    origin: str


def held_out() -> str:
    """English text (chapters of Python's manual) that the project's own model was not trained on."""
    return HELD_OUT.read_text(encoding="utf-8")


def load_text(name: str) -> str:
    """A text by name: a text file, a table (`.jsonl`, `.json`, `.parquet`, `.csv`) or a data set of the Hub.

    A table or data set is written `NAME[:CONFIG][@SPLIT][#COLUMN]`, by default `@test#text`; its rows are
    joined by blank lines. `wikitext-2` is short for the test split of the raw WikiText-2.

    Raises:
        BadInput: there is no such text, it cannot be reached, or it is empty.
    """
    path = Path(name)
    if path.is_file() and path.suffix not in _TABLES:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{name} cannot be read as UTF-8 text ({error}); give a text file") from error
    else:
        text = _table_text(WIKITEXT if name == "wikitext-2" else name)
    if not text.strip():
        raise BadInput(f"{name} holds no text; give another")
    return text


def _table_text(name: str) -> str:
    rest, _, column = name.partition("#")
    rest, _, split = rest.partition("@")
    where, _, config = rest.partition(":")
    column = column or "text"
    kind = _TABLES.get(Path(where).suffix)
    if kind and not Path(where).is_file():
        raise BadInput(f"{where} is no file; give a text file, a table, or a data set of the Hub")
    import datasets  # takes a second to import, and most comparisons use the text of the package

    try:
        if kind:
            table = datasets.load_dataset(kind, data_files={"rows": where}, split="rows")
        else:
            table = datasets.load_dataset(where, config or None, split=split or "test")
    except Cancelled:
        raise
    except Exception as error:
        raise out_of_reach(error, f"the text {name!r}") from error
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        raise BadInput(f"{where} has no column {column!r} (it has {known}); write {where}#COLUMN")
    return "\n\n".join(str(row) for row in table[column])


def text_tokens(tokenizer: Tokenizer, text: str, limit: int, origin: str, special: bool = False) -> Tokens:
    """The first `limit` tokens of `text`; `special` with what the tokenizer puts around a text.

    Raises:
        BadInput: the text has fewer than two tokens.
    """
    # Tokenising much more than is used costs minutes on a slow tokenizer; no text has 16 characters a token.
    ids = tokenizer(text[: 16 * limit], add_special_tokens=special, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise BadInput(f"the text has {len(ids)} token(s); give a text of at least two tokens")
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Tokens(
        torch.tensor(ids[:limit], dtype=torch.int64),
        None if first is None else int(first),
        leading_token(tokenizer),
        False,
        origin,
    )


def leading_token(tokenizer: Tokenizer) -> int | None:
    """The begin-of-text id, when the tokenizer adds one by itself."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return int(bos) if ids and bos is not None and ids[0] == bos else None


def random_tokens(vocabulary: int, limit: int, seed: int = 0) -> Tokens:
    """`limit` ids drawn uniformly: for a model without a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        torch.randint(vocabulary, (limit,), generator=generator),
        None,
        None,
        True,
        f"random ids, seed {seed}",
    )
