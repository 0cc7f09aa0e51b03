"""Approximate: attention exact for the last tokens and the first, with a state of constant size for the rest.

Source: Graef, Gupta, "Approximate attention" (a draft in OpenMachine-ai/transformer-tricks). It is lossy: the
recipe must state a budget, which the evidence is held to. Weights stay as they are; what ships is the
attention and its cache (`shipped.modeling_approximate`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import eager_mask

from tricks.approximate_settle import OBSERVED, fit
from tricks.attention import attention_of
from tricks.float64 import float64_arithmetic
from tricks.model import first_line
from tricks.place import Place
from tricks.polynomials import state_size
from tricks.quiet import quiet
from tricks.recipe import Trick
from tricks.shipped.modeling_approximate import StateCache
from tricks.specimen import NoSpecimen
from tricks.subject import Draft, Subject

NAME = "approximate"
PROBE = "tricksmith_probe"
MOST_SUMS = 100_000
"""Per key-value head; more would take more memory than any window it could stand for."""
_PLAIN = (
    "dropout",
    "scaling",
    "is_causal",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)
"""Keyword arguments of an attention function that change nothing about what it computes."""

_OWN_CACHE = ("slim",)
"""Tricks that bring attention and a cache of their own."""


class _Unfit(Exception):
    """Why attention cannot be approximated."""


def plan_approximate(subject: Subject, trick: Trick) -> Draft:
    """Plan the exchange of all attention layers of a model, or of none."""
    try:
        _check(trick)
        calls = _calls(subject)
        if keeps := sorted({trick for path, trick in subject.claims.items() if trick in _OWN_CACHE}):
            raise _Unfit(
                f"{keeps[0]} keeps a cache of its own, which this would replace; choose one of the two"
            )
        return _plan(subject, trick, calls)
    except (_Unfit, NoSpecimen) as reason:
        return Draft([Place(NAME, "attention", False, str(reason))], lossless=True)


def _check(trick: Trick) -> None:
    window, sinks = int(trick.option("window")), int(trick.option("sinks"))
    if window < sinks:
        raise _Unfit(f"a window of {window} tokens is smaller than the {sinks} sinks; choose a larger window")
    low, high = trick.option("low"), trick.option("high")
    if OBSERVED not in (low, high) and float(low) >= float(high):
        raise _Unfit("low must lie below high: they are the range of the dot products")
    if trick.option("kl") == "none" and trick.option("perplexity") == "none":
        raise _Unfit(
            "it is lossy and no budget is stated; say how much it may differ, for example "
            "approximate:kl=0.05 (nats per token) or approximate:perplexity=0.02 (relative increase)"
        )


def _plan(subject: Subject, trick: Trick, calls: dict[str, tuple[int, int]]) -> Draft:
    window, sinks = int(trick.option("window")), int(trick.option("sinks"))
    degree, parts = int(trick.option("degree")), int(trick.option("parts"))
    kind = trick.option("poly")
    size, shared = _full_heads(subject)
    if size % parts:
        raise _Unfit(f"{parts} parts do not divide a head of {size} channels")
    sums = 0 if kind == "none" else state_size(size, degree, parts)
    if sums > MOST_SUMS:
        raise _Unfit(
            f"degree {degree} in {parts} parts of {size} channels needs {sums:,} sums per head, more than "
            "any window is worth; choose a smaller degree or other parts"
        )
    # Where the range is to be observed, this fit stands in until the source has run (see `settle`).
    options = {"window": window, "sinks": sinks, "parts": parts, "coefficients": _provisional(trick)}
    detail = f"exact for the last {window} tokens and the first {sinks}"
    detail += ", older ones are forgotten" if kind == "none" else ", a polynomial for the rest"
    per_layer = shared * (2 * size * (window + sinks) + sums * (size + 1))
    return Draft(
        places=[Place(NAME, where, True, detail) for where in calls],
        savings={
            "cache_elements_of_any_length": per_layer * len(calls),
            "cache_elements_per_token_before": 2 * shared * size * len(calls),
            "sums_per_head": sums,
            # Where a plain cache takes as much memory.
            "break_even_tokens": round(per_layer / (2 * shared * size)),
        },
        lossless=False,
        config={"tricksmith": {NAME: options}},
        parts=(NAME,),
    )


def _provisional(trick: Trick) -> list[float]:
    low, high = (trick.option(name) for name in ("low", "high"))
    end = max([2.0, *(abs(float(value)) + 1 for value in (low, high) if value != OBSERVED)])
    return fit(trick, -end, end)


def _full_heads(subject: Subject) -> tuple[int, int]:
    """Channels of a head and key-value heads, of the model itself."""
    config: Any = subject.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(size), int(getattr(config, "num_key_value_heads", None) or heads)


def _calls(subject: Subject) -> dict[str, tuple[int, int]]:
    """The modules that call the attention function which the configuration names, with heads and head size.

    Found by running a specimen with an attention function of our own and a cache; every attention block must
    call it with plain arguments and with the keys that the cache returned.
    """
    small: Any
    small, found = attention_of(subject)
    if "decoder_input_ids" in inspect.signature(small.forward).parameters:
        raise _Unfit("it has an encoder, whose tokens see all others, not those before them alone")
    names = {id(module): path for path, module in small.named_modules()}
    seen: dict[str, tuple[int, int]] = {}
    odd: list[str] = []

    def probe(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        path = names[id(module)]
        seen[path] = (key.shape[1], key.shape[-1])
        used = sorted(name for name, given in kwargs.items() if given is not None and name not in _PLAIN)
        if used:
            odd.append(f"{path} attends with {', '.join(used)}")
        if mask is None or mask[..., 0, 1].max() == 0:
            odd.append(f"{path} sees later tokens too")
        elif not hasattr(key, "tricksmith_layer"):
            odd.append(f"{path} changes its keys behind the cache")
        if key.shape[-1] != value.shape[-1] or query.shape[-1] != key.shape[-1]:
            odd.append(f"{path} has keys and values of different sizes")
        batch, heads, length, _ = query.shape
        return query.new_zeros(batch, length, heads, value.shape[-1]), None

    AttentionInterface.register(PROBE, probe)
    AttentionMaskInterface.register(PROBE, eager_mask)
    configs = [module.config for module in small.modules() if hasattr(module, "config")]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = PROBE
        cache = StateCache({"window": 64, "sinks": 0, "parts": 1, "coefficients": []})
        with torch.no_grad(), float64_arithmetic(), quiet():
            small(input_ids=torch.tensor([[3, 4, 5]]), past_key_values=cache, use_cache=True)
    except Exception as error:
        raise _Unfit(_no_cache(small, first_line(error))) from error
    finally:
        for config, old in zip(configs, before, strict=True):
            config._attn_implementation = old
    blocks = {one.where for one in found}
    if not seen or blocks - seen.keys():
        raise _Unfit("its modelling code does not let its attention be exchanged")
    if odd:
        raise _Unfit(odd[0])
    return seen


def _no_cache(small: Any, problem: str) -> str:
    """Why the specimen does not run with a cache of keys and values."""
    try:
        with torch.no_grad(), float64_arithmetic(), quiet():
            own = small(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    except Exception:  # noqa: BLE001 - modelling code can fail in any way
        own = None
    others = {type(layer) for layer in getattr(own, "layers", ())} - {DynamicLayer}
    if others:
        return f"its cache holds more than keys and values ({min(kind.__name__ for kind in others)})"
    return f"it takes no cache but its own ({problem})"
