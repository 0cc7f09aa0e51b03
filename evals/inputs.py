"""What both models are run on: the text, or the rules that stand in for it, cut into windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from evals.models import Kind, Loaded, context_length
from evals.recipe import Recipe
from evals.sound import features
from evals.text import Tokens, held_out, load_text, random_tokens, text_tokens
from evals.tokenizer import Tokenizer, load_tokenizer
from evals.windows import Window, chunks, pairs, scored_tokens, windows
from tricks import BadInput

SHORTEST_CONTEXT = 4
BIDIRECTIONAL_WINDOW = 128  # of what has to be run whole, as every position sees all others
RANDOM_NOTE = "the source has no tokenizer that loads: run on random token ids, without a perplexity"
SOUND_NOTE = "the sound is made by rule (gliding tones), so the figures compare the models and rate neither"


@dataclass(frozen=True)
class Inputs:
    """The windows, the text that they score (None where ids are random), and the model's context."""

    tokens: Tokens
    windows: list[Window]
    text: str | None
    vocabulary: int
    context: int
    notes: tuple[str, ...]

    @property
    def scored(self) -> int:
        """How many tokens are predicted."""
        return scored_tokens(self.windows)

    @property
    def fed(self) -> int:
        """How many tokens one forward pass over the windows reads."""
        return sum(len(window.inputs) for window in self.windows)


def prepare(folder: Path, found: Loaded, recipe: Recipe) -> Inputs:
    """Read the recipe's text and cut it for the model.

    Raises:
        BadInput: the text cannot be used with this model.
    """
    if recipe.tokens < 2:
        raise BadInput(f"{recipe.tokens} token(s) cannot be scored; ask for at least two")
    vocabulary = int(found.model.config.get_text_config(decoder=True).vocab_size)
    tokenizer = load_tokenizer(folder)
    tokens, text, notes = _tokens(folder, tokenizer, vocabulary, recipe)
    if int(tokens.ids.max()) >= vocabulary:
        raise BadInput(
            f"{folder} has a tokenizer with id {int(tokens.ids.max())} but a model of {vocabulary} tokens; "
            "give a folder where they belong together"
        )
    context = context_length(found.model) or recipe.window
    if context < SHORTEST_CONTEXT:
        raise BadInput(f"{folder} has a context of {context} tokens; at least {SHORTEST_CONTEXT} are needed")
    cut = _cut(folder, found, tokens, recipe, min(recipe.window, context))
    if not cut:
        raise BadInput(
            f"the text has {len(tokens.ids)} tokens, less than one window of this model; give a longer text"
        )
    if found.kind is Kind.SPEECH:
        notes = (*notes, SOUND_NOTE)
    scored = None if text is None or not found.kind.generative else _spelled(tokenizer, text, tokens, cut)
    return Inputs(tokens, cut, scored, vocabulary, context, notes)


def _tokens(
    folder: Path, tokenizer: Tokenizer | None, vocabulary: int, recipe: Recipe
) -> tuple[Tokens, str | None, tuple[str, ...]]:
    given = None if recipe.text is None else load_text(recipe.text)
    if tokenizer is None:
        if given is not None:
            raise BadInput(
                f"{folder} has no tokenizer that loads, so the text cannot be used; leave the text out"
            )
        return random_tokens(vocabulary, recipe.tokens), None, (RANDOM_NOTE,)
    origin = "held-out text of the package" if given is None else str(recipe.text)
    text = held_out() if given is None else given
    # Where a figure of others is to be met, the text is read as they read it.
    special = recipe.cut != "sliding"
    return text_tokens(tokenizer, text, recipe.tokens, origin, special), text, ()


def _cut(folder: Path, found: Loaded, tokens: Tokens, recipe: Recipe, length: int) -> list[Window]:
    if not found.kind.generative:
        length = min(length, BIDIRECTIONAL_WINDOW)
        return [Window(row, row) for row in tokens.ids.split(length) if len(row) > 1]
    if found.kind.decoder_only:
        if recipe.cut == "chunks":
            return list(chunks(tokens.ids, length))
        if recipe.cut == "rolling":
            return list(windows(tokens.ids, length, length, tokens.first))
        return list(windows(tokens.ids, length, 3 * length // 4, tokens.first, tokens.lead))
    start = _decoder_start(found)
    if found.kind is Kind.SEQ2SEQ:
        half = min(length, max(2, len(tokens.ids) // 2))
        return list(pairs(tokens.ids, half, half, start))
    rows = pairs(tokens.ids, 0, length, start)
    return [
        Window(row.inputs, row.targets, features(folder, found.model, seed=clip))
        for clip, row in enumerate(rows)
    ]


def _decoder_start(found: Loaded) -> int:
    for config in (found.model.config, found.model.generation_config):
        for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(config, key, None)
            if isinstance(value, int) and value >= 0:
                return value
    return 0


def _spelled(tokenizer: Tokenizer | None, text: str, tokens: Tokens, cut: list[Window]) -> str:
    """The text that the scored tokens spell; the text itself where all of it is scored."""
    assert tokenizer is not None
    ids = torch.cat([window.targets for window in cut]).tolist()
    spelled = str(tokenizer.decode(ids, skip_special_tokens=True))
    whole = len(text) <= 16 * len(tokens.ids) and len(spelled) >= len(text) - 1
    return text if whole else spelled
