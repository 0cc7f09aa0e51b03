"""One model writes on after a prompt, token by token, for somebody who watches.

This is a look, not evidence: one prompt, one run, in the dtype in which the model is stored. What is
published rests on `compare`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from evals.memory import MemoryLimit
from evals.models import Kind, Loaded, Place, context_length, kind_of, loaded, read_config
from evals.own_code import runs_own_code
from evals.precision import storage_dtype
from evals.tokenizer import Tokenizer, load_tokenizer
from tricks import BadInput

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Written:
    """What a model wrote: how many tokens, its cache's bytes at the end, and its speed.

    `tokens_per_second` leaves out the first token, which waits for the whole prompt; None where there was no
    second one.
    """

    prompt_tokens: int
    tokens: int
    cache_bytes: int
    tokens_per_second: float | None


def write_both(source: Path, converted: Path, prompt: str, new: int, tell: Tell) -> None:
    """Have both models write up to `new` tokens on after `prompt`, the best each time, one model at a time.

    `tell` is called with `{"side": "source" | "converted", ...}`: once with "prompt_tokens", for each token
    with its "id", its "text" and its "lead" (by how many logits it led the second best), and at the end with
    the figures of `Written`.

    Raises:
        BadInput: one of the two does not load, does not write text, or the prompt is too long for it.
    """
    config = read_config(source)
    kind = kind_of(config)
    if not kind.generative or kind is Kind.SPEECH:
        raise BadInput(f"{source.name} writes no text, so there is nothing to lay side by side")
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise BadInput(
            f"{source.name} has no tokenizer that loads without its own code; no prompt can be read"
        )
    own_code = runs_own_code(converted, read_config(converted), config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Place(storage_dtype(source), device, MemoryLimit())
    for side, folder, own in (("source", source, False), ("converted", converted, own_code)):
        with loaded(folder, kind, place, own) as found:
            ids = _ids(tokenizer, prompt, found, new)
            tell(
                {"side": side, "prompt_tokens": ids.shape[1], "device": device, "dtype": str(place.dtype)[6:]}
            )
            told = _Watched(tokenizer, lambda token, side=side: tell({"side": side, **token}))  # type: ignore[misc]
            tell({"side": side, **asdict(_write(found, ids, new, told))})


def _ids(tokenizer: Tokenizer, prompt: str, found: Loaded, new: int) -> torch.Tensor:
    """The prompt's ids `(1, tokens)`, where they and `new` more fit into the model's context."""
    ids: torch.Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"]
    longest = context_length(found.model)
    if not ids.shape[1]:
        raise BadInput("the prompt is empty; write a few words")
    if longest is not None and ids.shape[1] + new > longest:
        raise BadInput(
            f"the prompt's {ids.shape[1]:,} tokens and {new} new ones are more than the {longest:,} that the "
            "model reads; shorten it"
        )
    return ids.to(found.device)


class _Watched(LogitsProcessor):
    """Sees each step's logits, and tells the token that greedy decoding takes of them."""

    def __init__(self, tokenizer: Tokenizer, tell: Tell) -> None:
        self._tokenizer, self._tell = tokenizer, tell
        self._ids: list[int] = []
        self._text = ""
        self._telling = 0.0
        self._at: list[float] = []

    @property
    def per_second(self) -> float | None:
        """Tokens per second after the first, without the time that telling took."""
        if len(self._at) < 2:
            return None
        return (len(self._at) - 1) / (self._at[-1] - self._at[0])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores[0].double().topk(2)
        token, lead = int(best.indices[0]), float(best.values[0] - best.values[1])
        now = time.perf_counter()
        self._at.append(now - self._telling)
        self._ids.append(token)
        # A token's text depends on its neighbours: half a character, a space that is dropped at a beginning.
        text = str(self._tokenizer.decode(self._ids))
        self._tell({"id": token, "text": text[len(self._text) :], "lead": lead})
        self._text = text
        self._telling += time.perf_counter() - now
        return scores


@torch.inference_mode()
def _write(found: Loaded, ids: torch.Tensor, new: int, watched: _Watched) -> Written:
    """Greedy decoding through the cache, up to an end token."""
    model = found.model
    said = model.generation_config
    ends = getattr(said, "eos_token_id", None)
    begin = getattr(said, "decoder_start_token_id", None) or getattr(
        model.config, "decoder_start_token_id", None
    )
    settings: dict[str, Any] = {"do_sample": False, "use_cache": True, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "eos_token_id": ends, "decoder_start_token_id": begin}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generate: Any = GenerationMixin.generate

    def run(most: int, processors: list[LogitsProcessor]) -> Any:
        plain = GenerationConfig(max_new_tokens=most, **settings)
        model.generation_config = plain
        return generate(
            model, **inputs, generation_config=plain, logits_processor=LogitsProcessorList(processors)
        )

    run(2, [])  # what a library sets up at its first steps is not the model's time
    out = run(new, [watched])
    before = ids.shape[1] if found.kind.decoder_only else 1
    return Written(
        prompt_tokens=ids.shape[1],
        tokens=out.sequences.shape[1] - before,
        cache_bytes=cache_bytes(out.past_key_values),
        tokens_per_second=watched.per_second,
    )


def cache_bytes(cache: object) -> int:
    """Bytes of all tensors that a cache of any class holds of its tokens, shared ones counted once.

    Of a layer with `keys` and `values` these alone: what it also points at is working space or a weight.
    """
    found: dict[tuple[int, int], int] = {}
    seen: set[int] = set()
    todo: list[Any] = [cache]
    while todo:
        each = todo.pop()
        if isinstance(each, torch.Tensor):
            found[each.data_ptr(), each.nbytes] = each.nbytes
            continue
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(getattr(each, "keys", None), torch.Tensor):
            todo += [each.keys, each.values]
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, (list, tuple)):
            todo += each
        elif type(each).__module__.split(".")[0] in ("transformers", "transformers_modules"):
            todo += vars(each).values()
    return sum(found.values())
