"""How many windows are read at once: what memory takes on a card, and the same answers whatever it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evals.logits import LogitComparison
from evals.memory import MemoryLimit
from evals.models import Kind, Loaded, Place, loaded
from evals.passes import CARD_TOKENS, Meter, rows_that_fit
from evals.reference import Piece, run_pieces
from evals.windows import Window
from tricks import silent

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
WINDOWS = [
    Window(row[:-1], row[1:])
    for row in torch.randint(5, 500, (11, 33), generator=torch.Generator().manual_seed(0))
]


def run(found: Loaded, batch: int, pieces: list[Piece]) -> tuple[LogitComparison, torch.Tensor, Meter]:
    meter = Meter(silent, 1, batch)
    return *run_pieces(found, pieces, meter, "one by one", "in batches"), meter


def test_batches_give_what_one_window_at_a_time_gives() -> None:
    place = Place(torch.float32, "cpu", MemoryLimit())
    with loaded(TINY, Kind.CAUSAL, place) as found, torch.inference_mode():
        alone = [Piece(w, found.model(input_ids=w.inputs[None]).logits[0]) for w in WINDOWS]
        same, losses, _ = run(found, 1, alone)
        assert same.result().identical
        for batch in (4, 8):
            many, batched, meter = run(found, batch, alone)
            assert many.result().positions == sum(len(w.targets) for w in WINDOWS)
            assert many.result().largest < 1e-4
            assert meter.done == sum(len(w.inputs) for w in WINDOWS)
            torch.testing.assert_close(batched, losses, rtol=1e-5, atol=1e-5)
            again, repeated, _ = run(found, batch, alone)
            assert torch.equal(repeated, batched)
            assert torch.equal(again.divergences(), many.divergences())


def test_on_a_cpu_the_batch_is_the_recipes() -> None:
    with loaded(TINY, Kind.CAUSAL, Place(torch.float32, "cpu", MemoryLimit())) as found:
        assert rows_that_fit(found, WINDOWS, MemoryLimit(), 8) == 8


@pytest.mark.parametrize("free", [2**20, 2**30, 80 * 2**30])
def test_on_a_card_the_batch_is_what_its_free_memory_takes(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *given: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *given: 0)
    with loaded(TINY, Kind.CAUSAL, Place(torch.float32, "cpu", MemoryLimit())) as here:
        found = replace(here, device=torch.device("cuda", 0))
        rows = rows_that_fit(found, WINDOWS, MemoryLimit(), 8)
        slower = rows_that_fit(found, WINDOWS, MemoryLimit(gpu=free // 4), 8)
    assert rows & (rows - 1) == 0
    vocabulary = here.model.config.vocab_size
    assert rows == 1 or rows * 32 * 2 * vocabulary * 4 <= free
    assert rows * 32 <= CARD_TOKENS
    assert slower <= rows
    assert (rows == 1) == (free == 2**20)
    assert (rows * 32 == CARD_TOKENS) == (free == 80 * 2**30)
