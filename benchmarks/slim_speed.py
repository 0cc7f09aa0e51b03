"""`make bench-slim`, second half: cache bytes and the time of a decoding step against the context's length.

A random Llama in bfloat16 (four layers of 1024 channels, 16 heads), its slim conversion and its conversion
with an 8-bit K take turns, step by step, on the CPU in plain torch. Long contexts are short ones repeated in
the cache: what stands in it does not matter to the time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tricks import convert, parse_trick, read_checkpoint
from tricks.draft import draft_plan
from tricks.shipped.modeling_slim import cache_bytes

CONTEXTS = (512, 2048, 8192, 16384)
STEPS = 7
FORMS = {
    "standard": None,
    "slim": "slim:mode=k,residual=64",
    "slim, 8-bit K": "slim:mode=k,residual=256,cache=int8",
}
_CONFIG = {
    "vocab_size": 512,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
}


def speed() -> list[dict[str, Any]]:
    """Rows {context, form: {bytes, seconds}}; seconds are the median of a step's."""
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        LlamaForCausalLM(LlamaConfig(**_CONFIG)).to(torch.bfloat16).save_pretrained(source)
        models: dict[str, Any] = {}
        for number, (form, text) in enumerate(FORMS.items()):
            out = source
            if text is not None:
                out = Path(folder, f"out{number}")
                plan = draft_plan(read_checkpoint(source), [parse_trick(text)])
                convert(plan, source, out, settling=False)
            models[form] = AutoModelForCausalLM.from_pretrained(
                out, dtype=torch.bfloat16, trust_remote_code=True
            ).eval()
        for context in CONTEXTS:
            row: dict[str, Any] = {"context": context}
            caches = {form: filled(model, context) for form, model in models.items()}
            times: dict[str, list[float]] = {form: [] for form in models}
            for step in range(STEPS + 1):
                for form, model in models.items():
                    spent = timed(model, caches[form])
                    if step:  # the first warms up
                        times[form].append(spent)
            for form, cache in caches.items():
                row[form] = {"bytes": cache_bytes(cache), "seconds": statistics.median(times[form])}
            rows.append(row)
            shown = ", ".join(f"{form} {row[form]['seconds'] * 1e3:.0f} ms" for form in models)
            print(f"context {context}: {shown}", flush=True)
    return rows


@torch.no_grad()
def filled(model: Any, context: int) -> Any:
    """A live cache of `context` tokens."""
    ids = torch.randint(512, (1, CONTEXTS[0]), generator=torch.Generator().manual_seed(1))
    cache = model(ids, use_cache=True).past_key_values
    times = context // CONTEXTS[0]
    for layer in [*cache.layers, *cache.__dict__.get("slim_tables", {}).values()]:
        layer.keys, layer.values = (x.repeat(1, 1, times, 1) for x in (layer.keys, layer.values))
    return cache


@torch.no_grad()
def timed(model: Any, cache: Any) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    model(torch.tensor([[7]]), past_key_values=cache, use_cache=True)
    return time.perf_counter() - started
