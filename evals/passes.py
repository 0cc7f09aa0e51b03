"""One model run over windows, in batches, with a count of what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from evals.memory import MemoryLimit
from evals.models import Kind, Loaded, first_line
from evals.windows import Window
from tricks import BadInput, Report

LOGIT_BYTES = 2**28  # of one batch on a CPU; more rows at once than that buy no speed
CARD_TOKENS = 2**16  # of one batch on a card, likewise


@dataclass
class Meter:
    """Counts the tokens that all runs together read, tells how far they are, and what had to give way.

    `batch` is the most rows of a forward pass; it is halved for good where memory runs out.
    """

    report: Report
    total: int
    batch: int
    notes: list[str] = field(default_factory=list)
    done: int = 0

    def add(self, tokens: int) -> None:
        """`tokens` more were read."""
        self.done += tokens
        self.total = max(self.total, self.done)
        self.report("tokens", self.done, self.total)

    def shrink(self, rows: int, what: str = "windows") -> int:
        """Half of `rows`, after a batch of that many did not fit in memory; of `prompts`, one.

        Raises:
            BadInput: it was one row.
        """
        if rows == 1:
            raise BadInput(
                f"out of memory even with one of the {what} at a time; close other programs, "
                "or give a larger --max-memory"
            )
        less = 1 if what == "prompts" else rows // 2
        if what == "windows":
            self.batch = less
        self.notes.append(f"out of memory with {rows} {what} at a time: went on with {less}")
        return less


def window_logits(
    found: Loaded, cut: Sequence[Window], meter: Meter, hidden: list[torch.Tensor] | None = None
) -> Iterator[torch.Tensor]:
    """Each window's logits for all its inputs, `(inputs, vocabulary)`, where the model is, in order.

    `hidden` is given the residual stream of the first window after every layer, `(inputs, width)` each.
    """
    at = 0
    while at < len(cut):
        rows = _batch(found, cut, at, meter.batch)
        want = hidden is not None and at == 0
        while True:
            try:
                output = _forward(found, cut[at : at + rows], want)
                logits = _answers(output)
                break
            except Exception as error:
                if not out_of_memory(error):
                    raise cannot_run(found, cut[at], error) from error
            rows = meter.shrink(rows)
        if want and hidden is not None:
            states = getattr(output, "hidden_states", None) or getattr(output, "decoder_hidden_states", None)
            hidden.extend(state[0].cpu() for state in states or ())
        del output
        # One row at a time, so that whoever stops in between has counted only what was used.
        for window, row in zip(cut[at : at + rows], logits, strict=True):
            yield row
            meter.add(len(window.inputs))
        at += rows


def rows_that_fit(found: Loaded, cut: Sequence[Window], memory: MemoryLimit, most: int) -> int:
    """How many windows to read at once: on a card as many as its free memory takes, else `most`.

    A power of two, so that a little more or less free memory changes nothing. Half of what is free is left
    to what this does not count; where it does not do, `Meter.shrink` halves.
    """
    if found.device.type == "cpu":
        return most
    config = found.model.config.get_text_config(decoder=True)
    width = int(getattr(config, "hidden_size", 0) or 0)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * width)
    # Logits as they come, their comparison in float64 row by row; a layer's streams and what its MLP makes.
    each = found.model.dtype.itemsize * (2 * int(config.vocab_size) + 8 * width + 4 * inner)
    tokens = max(sum(map(max, _shapes(window))) for window in cut)
    rows = min(memory.spare(str(found.device)) // 2 // each, CARD_TOKENS) // tokens
    return 1 << (max(1, rows).bit_length() - 1)


def cannot_run(found: Loaded, window: Window, error: Exception) -> BadInput:
    """Models are other people's code: whatever one raises, it is the model that cannot be run."""
    read = "" if window.encoder is None else f" with {list(window.encoder.shape)} for its encoder"
    return BadInput(
        f"{type(found.model).__name__} cannot be run on {len(window.inputs)} tokens{read} "
        f"({first_line(error)}); give an intact model"
    )


def _batch(found: Loaded, cut: Sequence[Window], at: int, most: int) -> int:
    """How many windows from `at` on are alike enough, and small enough, for one pass."""
    shapes = _shapes(cut[at])
    if found.device.type == "cpu":
        values = len(cut[at].inputs) * int(found.model.config.get_text_config(decoder=True).vocab_size)
        most = max(1, min(most, LOGIT_BYTES // (values * 4)))
    rows = 1
    while rows < most and at + rows < len(cut) and _shapes(cut[at + rows]) == shapes:
        rows += 1
    return rows


def _shapes(window: Window) -> list[tuple[int, ...]]:
    return [tuple(read.shape) for read in (window.inputs, window.encoder) if read is not None]


@torch.inference_mode()
def _forward(found: Loaded, rows: Sequence[Window], hidden: bool) -> Any:
    arguments: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    if found.kind.generative:
        arguments["use_cache"] = False
    return found.model(**model_inputs(found, rows), return_dict=True, **arguments)


def _answers(output: Any) -> torch.Tensor:
    """What the model says at every position, `(rows, positions, values)`; a class of a whole row is one."""
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output.last_hidden_state
    assert isinstance(logits, torch.Tensor)
    return logits[:, None] if logits.ndim == 2 else logits


def model_inputs(found: Loaded, rows: Sequence[Window]) -> dict[str, torch.Tensor]:
    """The rows as one batch, under the names that the model's kind reads."""
    ids = torch.stack([row.inputs for row in rows]).to(found.device)
    if found.kind.decoder_only or not found.kind.generative:
        return {"input_ids": ids}
    read = torch.stack([row.encoder for row in rows if row.encoder is not None]).to(found.device)
    if found.kind is Kind.SEQ2SEQ:
        return {"input_ids": read, "decoder_input_ids": ids}
    return {found.model.main_input_name: read.to(found.model.dtype), "decoder_input_ids": ids}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in this process."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Float32 products in float32: no TF32, no bfloat16 passes, whatever the process had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
