"""Greedy generation: what both models write after the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

PROMPTS = 4
PROMPT_TOKENS = 32
NEW_TOKENS = 48


@dataclass(frozen=True)
class Continuations:
    """`tokens` `(prompts, new)`, and by how much the best logit led the second best at each step, same
    shape."""

    tokens: torch.Tensor
    lead: torch.Tensor


@dataclass(frozen=True)
class Generation:
    """Both models' greedy continuations of the same prompts.

    `same` prompts went on identically. `first_divergence` is the earliest new token (counted from 0) that
    differs in any prompt. `lead` is the largest lead, in logits, that the source's own choice had where a
    prompt first
    diverged: a lead within the noise is a tie that either model may break either way.
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


def pick_prompts(ids: torch.Tensor, bos: int | None, context: int) -> torch.Tensor:
    """Evenly spaced stretches of `ids` as prompts of one length, `(prompts, length)`."""
    lead = ids.new_tensor([] if bos is None else [bos])
    length = max(1, min(PROMPT_TOKENS, len(ids), context // 2 - len(lead)))
    last = len(ids) - length
    begins = sorted({last * i // max(1, PROMPTS - 1) for i in range(PROMPTS)})
    return torch.stack([torch.cat([lead, ids[b : b + length]]) for b in begins])


@torch.inference_mode()
def continue_greedily(model: PreTrainedModel, prompts: torch.Tensor, context: int) -> Continuations:
    """Go on after each prompt with the best token each time, through the model's own cache.

    The model's `generation_config.json` is set aside: an end token or a repetition penalty would compare
    settings.
    """
    new = max(1, min(NEW_TOKENS, context - prompts.shape[1]))
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config = plain
    inputs = prompts.to(model.device)
    generate: Any = model.generate  # its declared type is lost in a decorator
    out = generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=plain)
    best = torch.stack([step.topk(2, dim=-1).values for step in out.logits], dim=1)  # (prompts, new, 2)
    lead = (best[..., 0] - best[..., 1]).double().cpu()
    return Continuations(out.sequences[:, prompts.shape[1] :].cpu(), lead)


def compare_continuations(source: Continuations, converted: Continuations, prompt_tokens: int) -> Generation:
    """Where the two part, prompt by prompt."""
    count, new = source.tokens.shape
    steps: list[int] = []
    leads: list[float] = []
    for prompt in range(count):
        differing = (source.tokens[prompt] != converted.tokens[prompt]).nonzero()
        if len(differing):
            step = int(differing[0])
            steps.append(step)
            leads.append(float(source.lead[prompt, step]))
    return Generation(
        prompts=count,
        prompt_tokens=prompt_tokens,
        new_tokens=new,
        same=count - len(steps),
        first_divergence=min(steps, default=None),
        lead=max(leads, default=None),
    )
