"""One decoding step of a whole model, source against converted, both inside a CUDA graph.

The cache is a `StaticCache` of exactly the context, full of random numbers, so that no mask is needed and
stock attention takes its fastest kernels; what is measured is the step that writes and reads its last slot.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, StaticCache

from benchmarks.gpu.clock import BUDGET, milliseconds
from benchmarks.gpu.geometry import DEVICE, LLAMA_7B, PHI3_MINI, converted, source

_POINTS = [(1, 128), (1, 2048), (1, 16384), (1, 131072), (8, 4096), (8, 16384), (16, 8192), (32, 4096)]
_SHORT = [(1, 128), (1, 2048), (8, 4096)]


@contextmanager
def unmasked(model: PreTrainedModel) -> Iterator[None]:
    """A model of transformers' own makes no mask, for every slot is seen. Making one breaks a CUDA graph."""
    names = (c.__module__ for c in type(model).__mro__)
    module: Any = sys.modules.get(next((name for name in names if "transformers.models" in name), ""))
    if module is None:
        yield
        return
    stock = module.create_causal_mask
    module.create_causal_mask = lambda *args, **kwargs: None
    try:
        yield
    finally:
        module.create_causal_mask = stock


class Stepper:
    """One model with a full cache, whose next step can be run again and again."""

    def __init__(self, model: PreTrainedModel, batch: int, context: int) -> None:
        self.model, self.batch, self.context = model, batch, context
        text = model.config.get_text_config()
        self.ids = torch.randint(5, 1000, (batch, 1), device=DEVICE)
        self.where = torch.full((batch, 1), context - 1, device=DEVICE)
        # A first step into a short cache shows what each layer keeps; then it grows.
        self.cache = StaticCache(config=text, max_cache_len=8)
        self.step()
        for layer in self.layers():
            layer.max_cache_len = context
            for side in ("keys", "values"):
                old = getattr(layer, side)
                new = torch.empty(*old.shape[:2], context, old.shape[3], dtype=old.dtype, device=old.device)
                setattr(layer, side, new.normal_() if old.is_floating_point() else new.random_(0, 60))
        for table in self.cache.__dict__.get("slim_tables", {}).values():  # of positions
            table.keys.copy_(torch.arange(context, device=DEVICE)[:, None].expand_as(table.keys))
        if hasattr(model, "tricksmith_slim_steps"):
            model.tricksmith_slim_steps.tables.clear()

    def layers(self) -> list[Any]:
        """Everything that keeps something of each token."""
        return [*self.cache.layers, *self.cache.__dict__.get("slim_tables", {}).values()]

    def rewind(self) -> None:
        """Set every layer's count back to before the last slot."""
        for layer in self.layers():
            layer.cumulative_length.fill_(self.context - 1)

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """The next token's best id [B, 1]."""
        with unmasked(self.model):
            out = self.model(
                input_ids=self.ids,
                position_ids=self.where,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        best: torch.Tensor = out.logits.argmax(-1)
        return best

    def milliseconds(self, repeats: int = 12) -> float:
        """Median milliseconds of a step."""

        def fresh() -> None:
            self.rewind()
            self.step()

        # The rewinding is a store per layer, and the same for both models.
        return milliseconds(fresh, repeats)

    def cache_bytes(self) -> int:
        """Bytes of the cache, tables of positions counted."""
        return sum(x.nbytes for layer in self.layers() for x in (layer.keys, layer.values))


def measure(model: PreTrainedModel, batch: int, context: int) -> dict[str, Any]:
    """Step time, tokens per second, peak memory; `fits` is False where the card's memory does not do."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"batch": batch, "context": context, "fits": True}
    try:
        stepper = Stepper(model, batch, context)
        took = stepper.milliseconds()
        row |= {
            "step_ms": took,
            "tokens_per_second": batch / took * 1e3,
            "cache_bytes": stepper.cache_bytes(),
            "peak_bytes": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0,
        }
    except torch.OutOfMemoryError:
        row["fits"] = False
    return row


def largest_batch(model: PreTrainedModel, context: int, bytes_per_row: float) -> int:
    """The largest batch whose step runs at this context, tried downwards from what memory is left for."""
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    batch = int(free / bytes_per_row)
    while batch:
        try:
            stepper = Stepper(model, batch, context)
            stepper.rewind()
            stepper.step()
            torch.cuda.synchronize()
            return batch
        except torch.OutOfMemoryError:
            batch -= 1
        stepper = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
    return 0


def run() -> Iterator[dict[str, Any]]:
    """Both geometries, source and slim, at every point, and the largest batch at 16k and at 128k tokens.

    `slim torch` is the slim model with its kernels switched off, where a short context might do without.
    """
    for name, (kind, fields) in (("Llama-2-7B", LLAMA_7B), ("Phi-3-mini-128k", PHI3_MINI)):
        rank = fields["hidden_size"] // 16
        for form in ("source", "slim"):
            if form == "source":
                model = source(kind, fields)
            else:
                model, _ = converted(kind, fields, f"slim:residual={rank}")
            per_token = 0.0
            for batch, context in _POINTS:
                if BUDGET.left() < 10:
                    return
                row = {"model": name, "form": form, **measure(model, batch, context)}
                yield said(row)
                if row["fits"]:
                    per_token = row["cache_bytes"] / batch / context
            for context in (16384, 131072):
                if BUDGET.left() < 10:
                    return
                most = largest_batch(model, context, per_token * context)
                yield {"model": name, "form": form, "context": context, "largest_batch": most}
                print(f"{name} {form}: largest batch at {context} tokens {most}", flush=True)
            if form == "slim":
                without_kernels(model)
                for batch, context in _SHORT:
                    if BUDGET.left() < 10:
                        return
                    yield said({"model": name, "form": "slim torch", **measure(model, batch, context)})
            del model
            gc.collect()
            torch.cuda.empty_cache()


def without_kernels(model: PreTrainedModel) -> None:
    """Have a slim model decode in plain torch, as on a card that the kernels do not know."""
    memo = next(m.tricksmith_slim for m in model.modules() if hasattr(m, "tricksmith_slim"))
    module = sys.modules[type(memo.step).__module__]
    module.available = lambda *given: False  # type: ignore[attr-defined]
    module.residual_codes = lambda *given: None  # type: ignore[attr-defined]
    module.feed_back = lambda *given: None  # type: ignore[attr-defined]


def said(row: dict[str, Any]) -> dict[str, Any]:
    """The row, shown."""
    took = f"{row['step_ms']:.2f} ms" if row["fits"] else "does not fit"
    print(f"{row['model']} {row['form']} {row['batch']} x {row['context']}: {took}", flush=True)
    return row
