"""Greedy generation through the cache: what the source writes, and whether the converted model would too.

The source continues some prompts with its best token each time. The converted model is then led over the same
tokens by the same `generate`, with its own cache, one token at a time, and its logits are compared step by
step. So the cached decode path is measured whatever happens at the first tie, and where the converted model's
own best token first differs is where its greedy text would have parted from the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
)

from evals.models import Kind, Loaded
from evals.passes import Meter, cannot_run, model_inputs, out_of_memory
from evals.windows import Window
from tricks.shipped.modeling_slim import cache_bytes


@dataclass(frozen=True)
class Continuations:
    """`tokens` `(prompts, new)` that were written, and each step's logits `(prompts, new, vocabulary)`.

    `cache_bytes` is what the live cache held when the last token was said, of `cached` tokens in all rows.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    cache_bytes: int = 0
    cached: int = 0

    @property
    def lead(self) -> torch.Tensor:
        """By how much the best logit led the second best at each step, float64 `(prompts, new)`."""
        best = self.logits.double().topk(2, dim=-1).values
        return best[..., 0] - best[..., 1]


@dataclass(frozen=True)
class Generation:
    """Both models' greedy continuations of the same prompts, in the wider dtype.

    `same` prompts went on identically. `first_divergence` is the earliest new token (counted from 0) that
    differs in any prompt. `lead` is the largest lead, in logits, that the source's own choice had where a
    prompt first diverged: a lead within the noise is a tie that either model may break either way.
    """

    prompts: int
    prompt_tokens: int
    new_tokens: int
    same: int
    first_divergence: int | None
    lead: float | None

    @property
    def identical(self) -> bool:
        """Whether all prompts went on the same."""
        return self.same == self.prompts


class _Led(LogitsProcessor):
    """Leaves one token to choose at each step."""

    def __init__(self, tokens: torch.Tensor, begin: int) -> None:
        self._tokens, self._begin = tokens, begin

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = self._tokens[:, input_ids.shape[1] - self._begin].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, step[:, None], 0.0)


def continue_greedily(
    found: Loaded, prompts: Sequence[Window], new: int, meter: Meter, led: torch.Tensor | None = None
) -> Continuations:
    """Go on after each prompt for `new` tokens: the best each time, or those of `led` `(prompts, new)`.

    All prompts at once, or one after the other where memory runs out.

    Raises:
        BadInput: the model cannot be run, or not even on one prompt within this memory.
    """
    rows = len(prompts)
    parts: list[Continuations] = []
    while len(parts) * rows < len(prompts):
        at = slice(len(parts) * rows, (len(parts) + 1) * rows)
        try:
            parts.append(_continue(found, prompts[at], new, None if led is None else led[at]))
        except Exception as error:
            if not out_of_memory(error):
                raise cannot_run(found, prompts[0], error) from error
            meter.shrink(rows, "prompts")
            rows, parts = 1, []
    return Continuations(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.logits for part in parts]),
        sum(part.cache_bytes for part in parts),
        sum(part.cached for part in parts),
    )


@torch.inference_mode()
def _continue(found: Loaded, prompts: Sequence[Window], new: int, led: torch.Tensor | None) -> Continuations:
    """One batch.

    The model's `generation_config.json` is set aside: an end token or a repetition penalty would compare
    settings. So are a class's own ways to generate (Whisper's, which cuts sound into parts).
    """
    model = found.model
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
        decoder_start_token_id=int(prompts[0].inputs[0]),
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config = plain
    inputs: dict[str, Any] = dict(model_inputs(found, prompts))
    begin = inputs["input_ids" if found.kind.decoder_only else "decoder_input_ids"].shape[1]
    if found.kind is not Kind.SPEECH:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    config = model.config
    if getattr(config, "num_decoder_layers", None) not in (None, getattr(config, "num_layers", None)):
        # transformers makes a cache of as many layers as the encoder has (T5); this one grows.
        inputs["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    processors = LogitsProcessorList([] if led is None else [_Led(led, begin)])
    generate: Any = GenerationMixin.generate
    out = generate(model, **inputs, generation_config=plain, logits_processor=processors)
    return Continuations(
        out.sequences[:, begin:].cpu(),
        torch.stack([step.cpu() for step in out.logits], dim=1),
        cache_bytes(out.past_key_values),
        (out.sequences.shape[1] - 1) * len(prompts),
    )


def compare_continuations(source: Continuations, converted: Continuations, prompt_tokens: int) -> Generation:
    """Where greedy texts part, prompt by prompt, from the led model's own best tokens."""
    count, new = source.tokens.shape
    best, lead = converted.logits.argmax(-1), source.lead
    steps: list[int] = []
    leads: list[float] = []
    for prompt in range(count):
        differing = (source.tokens[prompt] != best[prompt]).nonzero()
        if len(differing):
            step = int(differing[0])
            steps.append(step)
            leads.append(float(lead[prompt, step]))
    return Generation(
        prompts=count,
        prompt_tokens=prompt_tokens,
        new_tokens=new,
        same=count - len(steps),
        first_divergence=min(steps, default=None),
        lead=max(leads, default=None),
    )
