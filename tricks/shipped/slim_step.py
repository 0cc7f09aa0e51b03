"""When an attention's decode step runs in the slim kernel, and with what.

The kernel wants keys that are nothing but a projection of the token, turned whole by one rotary embedding or
by none, and tokens at consecutive positions. Whatever else is met takes the torch path, which reads what the
model's own code made; what a shape or a machine lacks is said once, in one line.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from .slim_kernel import Shape, available, decode, feed_back, mix, residual_codes

_CLOSE = 0.05
"""Of two cosines: a token that stands one position off moves by 0.46, rounding by 0.01."""
_OTHER_SCORES = ("position_bias", "s_aux", "sinks", "head_mask")


class Steps:
    """What the attentions of one model share: the tokens that are seen, and the turn of the newest.

    Worked out once per step, from the mask and the cos and sin that the model hands round.
    """

    def __init__(self, model: nn.Module) -> None:
        rotary = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]
        self.rotary: Any = rotary[0] if len(rotary) == 1 else None
        self.tables: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self.key: Any = None
        self.found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor] | None = None

    def span(
        self, mask: torch.Tensor | None, batch: int, slots: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor] | None:
        """Slots in use [B], first slot [B] or None, and whether all between are seen (a bool tensor).

        None where the mask is none of slots, the same for all heads.
        """
        if mask is not None and (mask.dtype != torch.bool or mask.shape[1:] != (1, 1, slots)):
            return None
        key = (batch, slots, device, None if mask is None else (weakref.ref(mask), mask._version))
        if key != self.key:
            self.key = key
            if mask is None:
                lengths = torch.full((batch,), slots, dtype=torch.int32, device=device)
                self.found = lengths, None, torch.ones((), dtype=torch.bool, device=device)
            else:
                seen = mask[:, 0, 0].expand(batch, slots).to(torch.int32)
                starts = seen.argmax(-1).to(torch.int32)
                lengths = slots - seen.flip(-1).argmax(-1).to(torch.int32)
                self.found = lengths, starts, (seen.sum(-1) == lengths - starts).all()
        return self.found

    def turn(self, layer: Any, span: Any, memo: Any) -> torch.Tensor | None:
        """The newest token's cosines and sines [B, dk] float32; None where positions are not consecutive.

        Args:
            memo: of an attention that is turned by `layer.table`.
        """
        lengths, starts, whole = span
        state = self.tables.setdefault(layer.table, {})
        if state.get("rope") is memo.rope and state["span"] is span:
            known: torch.Tensor | None = state["turn"]
            return known
        state.update(rope=memo.rope, span=span)
        freq = self.rotary.inv_freq.float()
        first = torch.zeros_like(lengths) if starts is None else starts
        last, slots = lengths[:, None] - 1, first[:, None]
        if state.get("checked") is not self.rotary.inv_freq:  # every token so far, else the newest alone
            state["checked"] = self.rotary.inv_freq
            slots = torch.arange(memo.slots(layer.table), device=freq.device).expand(lengths.shape[0], -1)
        newest, seen_there = memo.tables_at(layer.table, last), memo.tables_at(layer.table, slots)
        (c, s), (cosines, sines) = newest.chunk(2, -1), seen_there.chunk(2, -1)
        scaling = getattr(self.rotary, "attention_scaling", 1.0) ** 2
        distance = last - slots
        seen = (distance >= 0) & (slots >= first[:, None])
        expected = scaling * torch.cos(distance[..., None] * freq)
        near = (c * cosines + s * sines - expected).abs().amax(-1) < _CLOSE * scaling
        fine = (near | ~seen).all() & whole
        state["turn"] = newest[:, 0] if state.get("turn", newest) is not None and _holds(fine) else None
        turn: torch.Tensor | None = state["turn"]
        return turn


class Step:
    """The decode step of one attention: softmax · [K | C] of the kernel, or None for the torch path."""

    def __init__(self, model: nn.Module, spec: dict[str, Any]) -> None:
        self.steps: Steps = model.__dict__.setdefault("tricksmith_slim_steps", Steps(model))
        self.spec = spec
        rope = spec["rope"]
        size = self.size = spec["cached_channels"] // spec["heads"] if spec["heads"] else 0
        kind = getattr(self.steps.rotary, "rope_type", "default")
        turns = rope is None or (
            self.steps.rotary is not None
            and kind != "dynamic"  # its frequencies change while tokens are in the cache
            and (rope["start"], rope["size"], rope["interleaved"]) == (0, size, False)
            and not rope["backwards"]
        )
        self.fits = spec["mode"] == "k" and spec["interface"] and not spec["norm"] and turns
        self.fits = self.fits and spec["groups"] == 1

    def shape(self, query: torch.Tensor) -> Shape:
        """What the kernel is compiled for; query [B, h, 1, dk]."""
        spec = self.spec
        return Shape(query.shape[1], query.shape[3], spec["residual"], query.dtype, bool(spec["rope"]))

    def output(self, sums: torch.Tensor, slim: Any, query: torch.Tensor) -> torch.Tensor:
        """The heads' outputs [B, 1, h, dv] of their sums [B, h, d + r], in the dtype of `query`.

        Args:
            slim: the `Derived` of values.
        """
        rest = getattr(slim, "residual_out", None)
        mixed = None
        if slim.values.dtype == torch.int16 and (rest is None or rest.dtype == query.dtype):
            scales = slim.row_scales, slim.column_scales
            mixed = mix(sums, slim.values, *scales, rest, self.shape(query))
        if mixed is None:
            both = torch.cat(slim.mixes(query.shape[1]), 1)
            return torch.einsum("bhe,hev->bhv", sums, both)[:, None].to(query.dtype)
        return mixed.view(sums.shape[0], 1, query.shape[1], -1)

    def codes(self, x: torch.Tensor, primary: torch.Tensor, slim: Any) -> torch.Tensor | None:
        """C of new tokens as the cache keeps it [B, n, r + 2] in two launches, or None for the torch path.

        Args:
            x, primary: the layer's input [B, n, width] and what is cached of it [B, n, d].
            slim: the `Derived` of values.
        """
        if not (self.spec["residual"] and self.spec["bits"] == 8 and self._few(x)):
            return None
        return residual_codes(x, primary, slim.residual_in, self._of_tokens(x.dtype))

    def fed_back(
        self, values: torch.Tensor, slim: Any, kept: torch.dtype, scale: torch.Tensor | None
    ) -> torch.Tensor | None:
        """P of new tokens rounded with error feedback, see `feed_back`, or None for the torch path."""
        if not self._few(values) or slim.feedback.dtype != kept:
            return None
        return feed_back(values.float().contiguous(), slim.order, slim.feedback, scale, self._of_tokens(kept))

    def _few(self, x: torch.Tensor) -> bool:
        """Whether kernels may take these new tokens [B, n, ...]."""
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return bool(self.fits and x.is_cuda and plain)

    def _of_tokens(self, dtype: torch.dtype) -> Shape:
        spec = self.spec
        return Shape(spec["heads"], self.size, spec["residual"], dtype, bool(spec["rope"]))

    def unsure(self, layer: Any) -> None:
        """Tokens have come to the cache whose positions nobody has looked at."""
        if layer.table is not None and layer.table in self.steps.tables:
            self.steps.tables[layer.table].pop("checked", None)

    def rows(
        self,
        memo: Any,
        layer: Any,
        query: torch.Tensor,
        mask: torch.Tensor | None,
        given: dict[str, Any],
    ) -> torch.Tensor | None:
        """o [B, h, e + r] in float32.

        Args:
            query: [B, h, 1, dk], turned.
            given: what the model hands to its attention function beside the tensors.
        """
        dropped = given.get("dropout") and memo.module.training
        if not self.fits or memo.config._attn_implementation != "sdpa" or dropped:
            return None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if any(given.get(name) is not None for name in _OTHER_SCORES):
            return None
        rope = self.spec["rope"]
        if rope is not None and memo.linear("key").bias is not None:
            return None  # it turns with the key
        shape = self.shape(query)
        if not available(shape, query.device):
            return None
        stored, codes = layer.tokens()
        primary = memo.open(stored)
        span = self.steps.span(mask, query.shape[0], primary.shape[1], query.device)
        if span is None:
            return None
        turn = None
        if rope is not None:
            turn = self.steps.turn(layer, span, memo)
            if turn is None:
                return None
        elif not _holds(span[2]):
            return None
        return decode(
            query[:, :, 0],
            primary,
            codes if self.spec["residual"] else None,
            span[0],
            None if rope is None else self.steps.rotary.inv_freq.float(),
            scale=given.get("scaling") or query.shape[3] ** -0.5,
            turn=turn,
            starts=span[1],
            cap=given.get("softcap") or 0.0,
        )


def _holds(fine: torch.Tensor) -> bool:
    """Whether it is true; while a CUDA graph is captured nobody can know, and a replay stops where not."""
    if fine.is_cuda and torch.cuda.is_current_stream_capturing():
        torch._assert_async(fine, "slim attention: tokens not at consecutive positions in a CUDA graph")
        return True
    return bool(fine)
