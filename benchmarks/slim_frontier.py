"""`make bench-slim`, first half: what each form of the cache loses, against the bytes that it takes.

Every slim point is a conversion by the shipped code, decoded through its cache: the model computes in float32
and its cache is rounded to bfloat16 (or 8 bits), so that the cache alone is seen. The yardstick is the
divergence of the source in bfloat16 from itself in float32, on the same held-out windows.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer

from models.evaluate import HELDOUT
from tricks import Plan, convert, parse_trick, read_checkpoint
from tricks.draft import draft_plan
from tricks.shipped.slim_rounding import from_bytes, to_bytes
from tricks.slim import table_bytes
from tricks.slim_observe import Watched, fisher
from tricks.slim_settle import Seen, decide, look

WINDOW, WINDOWS = 256, 16
TARGETS = ("1", "0.5", "0.25", "0.12", "0.06")
Rule = Callable[[Watched], torch.Tensor | None]


class Frontier:
    """The points of one model: {rule, bytes a token, share of a standard cache, KL over the floor}."""

    def __init__(self, source: Path) -> None:
        self.source, self.ids = source, _windows(source)
        self.model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        self.exact = _through_cache(self.model, self.ids)
        self.floor = divergence(self.exact, _through_cache(_load(source, torch.bfloat16), self.ids))
        self.checkpoint = read_checkpoint(source)
        plan = draft_plan(self.checkpoint, [parse_trick("slim")])
        self.before = plan.savings["cache_bytes_per_token_before"]
        self.points: list[dict[str, Any]] = []
        self.width = int(self.model.config.hidden_size)
        self.ranks = sorted({max(8, self.width // part // 8 * 8) for part in (32, 16, 8, 4)})

    def record(self) -> dict[str, Any]:
        """Every point, measured."""
        self._standard()
        for rank in (0, *self.ranks):
            option = f"slim:mode=k,residual={rank}"
            self._inverse("K, inverse; smallest singular values", rank, option)
        seen = self._look("slim:mode=k")
        weights: dict[str, Rule] = {"alike": lambda one: None, "by W_O": self._by_output, "Fisher": fisher}
        for name, weigh in weights.items():
            for rank in (0, *self.ranks) if weigh is fisher else self.ranks:
                text = f"slim:mode=k,residual={rank}"
                self._settled(f"K, weights {name}", str(rank), text, seen, weigh, feedback=False)
        self._fed_back("K", "slim:mode=k", seen)
        self._fed_back("V", "slim:mode=v", self._look("slim:mode=v"))
        text = "slim:mode=k,cache=int8"
        self._uneven("8-bit K, error fed back, uneven", text, self._look(text))
        return {
            "model": self.source.name,
            "floor": self.floor,
            "tokens": self.ids.numel(),
            "bytes before": self.before,
            "points": self.points,
        }

    def _note(self, rule: str, option: str, size: float, found: torch.Tensor, table: float = 0.0) -> None:
        loss = divergence(self.exact, found)
        share = size / self.before
        point = {"rule": rule, "option": option, "bytes": size, "share": share, "kl": loss}
        point["layers"] = (size - table) / self.before  # without the cos and sin that all layers share
        self.points.append(point | {"floors": loss / self.floor, "top1": _agreement(self.exact, found)})
        print(f"{self.source.name:11} {rule:36} {option:5} {share:7.2%} {loss / self.floor:9.3f}", flush=True)

    def _standard(self) -> None:
        config = self.model.config
        for rule, scales in (("bf16 K and V", 0), ("8-bit K and V, a scale per token", 1),
                             ("8-bit K and V, a scale per head", config.num_attention_heads)):  # fmt: skip
            size = self.before / 2 + 4 * scales * config.num_hidden_layers if scales else self.before
            self._note(rule, "", size, _through_cache(self.model, self.ids, partial(_rounding_cache, scales)))

    def _look(self, text: str) -> Seen:
        return look(self._plan(text), self.source, parse_trick(text))

    def _plan(self, text: str) -> Plan:
        return draft_plan(self.checkpoint, [parse_trick(text)])

    def _inverse(self, rule: str, rank: int, text: str) -> None:
        """The paper's form, and the residual in the directions of the smallest singular values, in 16 bits.

        The matrices are kept in float32, which is kinder to this form than to the others.
        """
        with tempfile.TemporaryDirectory() as folder:
            wide = Path(folder, "wide")
            self.model.save_pretrained(wide)
            plan = draft_plan(read_checkpoint(wide), [parse_trick(text)])
            size = plan.savings["cache_bytes_per_token_after"] / 2
            self._measure(rule, str(rank), plan, Path(folder, "out"), wide, size)

    def _settled(
        self,
        rule: str,
        option: str,
        text: str,
        seen: Seen,
        weigh: Rule = fisher,
        feedback: bool = True,
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plan = decide(self._plan(text), seen, parse_trick(text), Path(folder), weigh, feedback)
            if any(place.fits for place in plan.places):
                self._measure(rule, option, plan, Path(folder, "out"))

    def _fed_back(self, side: str, text: str, seen: Seen) -> None:
        for rank in (0, *self.ranks):
            self._settled(f"{side}, error fed back", str(rank), f"{text},residual={rank}", seen)
        self._uneven(f"{side}, error fed back, uneven", text, seen)

    def _uneven(self, rule: str, text: str, seen: Seen) -> None:
        for target in TARGETS:
            self._settled(rule, target, f"{text},target={target}", seen)

    def _measure(
        self, rule: str, option: str, plan: Plan, out: Path, source: Path | None = None, size: float = 0.0
    ) -> None:
        convert(plan, source or self.source, out, settling=False)
        result = _load(out, torch.float32)
        with _rounded():
            found = _through_cache(result, self.ids)
        table = table_bytes(plan.config["tricksmith"]["slim"]["layers"], 2)
        self._note(rule, option, size or plan.savings["cache_bytes_per_token_after"], found, table)

    def _by_output(self, one: Watched) -> torch.Tensor:
        """W_O·W_Oᵀ: errors of values counted at the attention's output, those of keys not at all."""
        module = self.model.get_submodule(one.spec["module"])
        names = ("o_proj", "dense", "c_proj")
        linear = getattr(module, next(name for name in names if hasattr(module, name)))
        out = (linear.weight if isinstance(linear, nn.Linear) else linear.weight.T).detach().double()
        counted: torch.Tensor = torch.block_diag(
            torch.zeros(len(one.primary), len(one.primary)).double(), out.T @ out
        )
        return counted


def divergence(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL in nats a token of log-probabilities [B, T, vocabulary]."""
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def _agreement(exact: torch.Tensor, found: torch.Tensor) -> float:
    return float((exact.argmax(-1) == found.argmax(-1)).float().mean())


def _load(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True).eval()


def _windows(source: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(HELDOUT.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


@torch.no_grad()
def _through_cache(model: Any, ids: torch.Tensor, cache: Callable[[], Any] = DynamicCache) -> torch.Tensor:
    """Log-probabilities of windows whose every token but the first is read against the cache."""
    rows = []
    for batch in ids.split(4):
        kept = cache()
        first = model(batch[:, :1], past_key_values=kept, use_cache=True).logits
        rest = model(batch[:, 1:], past_key_values=kept, use_cache=True).logits
        rows.append(torch.cat([first, rest], 1).float().log_softmax(-1))
    return torch.cat(rows)


class _Rounding(DynamicLayer):
    """A standard cache that holds bfloat16, or 8 bits with `parts` scales for each token."""

    parts = 0

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        keys, values = (self._round(x) for x in (key_states, value_states))
        return super().update(keys, values, *args, **kwargs)

    def _round(self, x: torch.Tensor) -> torch.Tensor:
        if not self.parts:
            return x.to(torch.bfloat16).to(x.dtype)
        rows = x.transpose(1, 2)  # [B, T, h, d_h]
        flat = rows.flatten(2).unflatten(-1, (self.parts, -1))
        return from_bytes(to_bytes(flat), x.dtype).flatten(2).view(rows.shape).transpose(1, 2)


def _rounding_cache(parts: int) -> DynamicCache:
    cache = DynamicCache()
    kind = type("Rounding", (_Rounding,), {"parts": parts})
    cache.layer_class_to_replicate = kind
    return cache


@contextmanager
def _rounded() -> Iterator[None]:
    """What converted models cache is rounded to bfloat16, though they compute in float32."""
    found = [
        module.Memo
        for name, module in sys.modules.items()
        if name.endswith("modeling_slim") and hasattr(module, "Memo")
    ]
    before = [(memo.kept_dtype, memo.derive) for memo in found]

    for memo in found:

        def derive(self: Any, x: Any, slim: Any, derive: Any = memo.derive) -> Any:
            if self.spec["residual"] and self.spec["bits"] == 16:
                residual = type(slim).residual
                slim.residual = lambda *args: residual(slim, *args).bfloat16().to(x.dtype)
            return derive(self, x, slim)

        memo.kept_dtype, memo.derive = (lambda self, dtype: torch.bfloat16), derive
    try:
        yield
    finally:
        for memo, (kept, old_derive) in zip(found, before, strict=True):
            memo.kept_dtype, memo.derive = kept, old_derive
