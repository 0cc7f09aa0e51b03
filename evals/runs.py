"""One model run over the windows, with progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from evals.windows import Window
from tricks import Report


class Progress:
    """Counts tokens over all runs of a comparison and tells how many are done."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0
        report("tokens", 0, total)

    def add(self, tokens: int) -> None:
        """`tokens` more are done."""
        self._done += tokens
        self._report("tokens", self._done, self._total)


def window_logits(
    model: PreTrainedModel, windows: Sequence[Window], progress: Progress
) -> Iterator[torch.Tensor]:
    """The logits that score each window's targets, `(targets, vocabulary)`, on the CPU."""
    for window in windows:
        with torch.inference_mode():
            output = model(input_ids=window.inputs[None].to(model.device), use_cache=False)
            logits = output.logits[0, -len(window.targets) :].cpu()
        yield logits
        progress.add(len(window.targets))


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Float32 products in float32: no TF32, no bfloat16 passes, whatever the process had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
