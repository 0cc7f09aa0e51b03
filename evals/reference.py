"""The source in the wider dtype, the truth that every other run is compared with; and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evals.generation import Continuations, continue_greedily
from evals.inputs import Inputs, prepare
from evals.logits import LogitComparison
from evals.models import Kind, Loaded, Place, loaded
from evals.passes import Meter, rows_that_fit, window_logits
from evals.perplexity import token_losses
from evals.precision import dtype_name
from evals.recipe import Recipe
from evals.rounding import round_once_more
from evals.windows import Window
from tricks import BadInput, Report

# Of one pass over the text, what may go to everything else than the two passes themselves.
EXTRA = 0.19
FLOOR_RUNS = 4  # source stored, source stored in another way, source rounded once more, converted
LEAST_FLOOR = 64  # tokens of each of these runs, however short the text
DECODE_SHARE = 0.25  # of the extra goes to the cached decode path of both models
PROMPTS = 3
PROMPT_TOKENS = 24
LEAST_NEW = 16
MOST_NEW = 64
CACHED_PROMPTS, CACHED_NEW = 4, 96
"""For a conversion with a cache of its own, whose decode path is what it changes."""


@dataclass(frozen=True)
class Piece:
    """A window to run again, and the reference's logits for its scored positions; None where not kept."""

    window: Window
    logits: torch.Tensor | None


@dataclass
class Reference:
    """The source's own answers.

    `pieces` are all windows; `sample` are beginnings of some of them (by their number), on which the runs are
    made that only measure noise. `rounded` is the source with its weights stored once more against itself, on
    the sample.
    """

    inputs: Inputs
    vocabulary: int
    pieces: list[Piece]
    losses: torch.Tensor
    sample: dict[int, Piece]
    prompts: list[Window]
    continuations: Continuations | None
    hidden: list[torch.Tensor]
    rounded: LogitComparison | None
    meter: Meter
    notes: list[str] = field(default_factory=list)


def run_source(
    folder: Path,
    kind: Kind,
    place: Place,
    storage: torch.dtype,
    recipe: Recipe,
    report: Report,
    exact: bool,
    own_cache: bool = False,
) -> Reference:
    """Run the source in `place.dtype` over the recipe's text.

    Args:
        exact: whether to find out what rounding its weights once more does.
        own_cache: whether the converted model's cache is its own: then far more is decoded.

    Raises:
        BadInput: the source lacks weights, gives NaN, or does not fit the text.
    """
    with loaded(folder, kind, place) as found:
        if found.missing:
            raise BadInput(
                f"{folder} lacks weights that its model needs ({few(found.missing)}); fetch it again"
            )
        inputs = prepare(folder, found, recipe)
        sample_rows = _sample(inputs.windows, whole=not kind.generative)
        prompts, new = _prompts(inputs, kind, own_cache) if kind.generative else ([], 0)
        cost = _cost(inputs, sample_rows, prompts, new, 4 if own_cache else 2)
        meter = Meter(report, cost, rows_that_fit(found, inputs.windows, place.memory, recipe.batch))
        report("tokens", 0, meter.total)
        hidden: list[torch.Tensor] = []
        pieces, sample, losses = _run_windows(found, inputs, sample_rows, place, meter, hidden)
        _check_finite(folder, place, [*pieces, *sample.values()], losses)
        written = continue_greedily(found, prompts, new, meter) if prompts else None
        meter.add(_decoded(prompts, new))
        rounded = None
        if exact and not found.offloaded:
            round_once_more(found.model, storage)
            rounded = run_pieces(
                found, list(sample.values()), meter, "source", "source with its weights rounded once more"
            )[0]
    vocabulary = next(piece.logits.shape[-1] for piece in sample.values() if piece.logits is not None)
    return Reference(
        inputs,
        vocabulary,
        pieces,
        losses,
        sample,
        prompts,
        written,
        hidden,
        rounded,
        meter,
        list(inputs.notes),
    )


def run_pieces(
    found: Loaded,
    pieces: Sequence[Piece],
    meter: Meter,
    reference: str,
    other: str,
    hidden: list[torch.Tensor] | None = None,
    beside: tuple[LogitComparison, dict[int, Piece]] | None = None,
) -> tuple[LogitComparison, torch.Tensor]:
    """Run a model over the pieces: how its logits differ where the reference's are kept, and all its losses.

    `beside` takes in how they differ on the beginnings of some pieces, without another run.

    Raises:
        OtherVocabulary: it predicts over another vocabulary.
    """
    comparison, losses = LogitComparison(reference, other), []
    runs = window_logits(found, [piece.window for piece in pieces], meter, hidden)
    for number, (piece, logits) in enumerate(zip(pieces, runs, strict=True)):
        scored = logits[-len(piece.window.targets) :]
        if piece.logits is not None:
            if piece.logits.shape != scored.shape:
                raise OtherVocabulary(scored.shape[-1], piece.logits.shape[-1])
            comparison.add(piece.logits, scored)
        if beside is not None and number in beside[1]:
            expected = beside[1][number].logits
            assert expected is not None
            beside[0].add(expected, logits[: len(expected)])
        losses.append(_losses(found.kind, scored, piece.window))
    return comparison, torch.cat(losses)


def _losses(kind: Kind, scored: torch.Tensor, window: Window) -> torch.Tensor:
    """What the model that says the next token pays for the ones that came; zeros for any other."""
    return token_losses(scored, window.targets) if kind.generative else torch.zeros(len(scored))


class OtherVocabulary(Exception):
    """The converted model predicts over another vocabulary."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"the converted model predicts over {found} tokens, the source over {expected}")


def decode(found: Loaded, reference: Reference) -> Continuations | None:
    """Lead a model over what the source wrote, through its own cache; None where it writes nothing."""
    if reference.continuations is None:
        return None
    wrote = reference.continuations.tokens
    led = continue_greedily(found, reference.prompts, wrote.shape[1], reference.meter, wrote)
    reference.meter.add(_decoded(reference.prompts, wrote.shape[1]))
    if led.logits.shape != reference.continuations.logits.shape:
        raise OtherVocabulary(led.logits.shape[-1], reference.vocabulary)
    return led


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _sample(cut: list[Window], whole: bool) -> dict[int, int]:
    """Window -> how many of its first inputs the noise runs read: few long rows, evenly spaced.

    `whole` windows only, where a later token changes what is said at an earlier one.
    """
    fed = sum(len(window.inputs) for window in cut)
    each = max(LEAST_FLOOR, int(EXTRA * (1 - DECODE_SHARE) * fed / FLOOR_RUNS))
    length = max(len(window.inputs) for window in cut)
    longest = [i for i, window in enumerate(cut) if len(window.inputs) == length]
    stop = length if whole else min(length, max(LEAST_FLOOR, each // 2))
    rows = max(1, min(len(longest), each // stop))
    return {longest[len(longest) * row // rows]: stop for row in range(rows)}


def _prompts(inputs: Inputs, kind: Kind, own_cache: bool) -> tuple[list[Window], int]:
    """Beginnings of windows to go on after, and for how many tokens."""
    longest = max(len(window.inputs) for window in inputs.windows)
    whole = [window for window in inputs.windows if len(window.inputs) == longest]
    length = 1 if kind is Kind.SPEECH else max(1, min(PROMPT_TOKENS, longest, inputs.context // 2))
    rows = min(CACHED_PROMPTS if own_cache else PROMPTS, len(whole))
    each = int(EXTRA * DECODE_SHARE * inputs.fed / 2 / rows)
    new = max(1, min(max(LEAST_NEW, min(MOST_NEW, each - length)), inputs.context - length))
    if own_cache:
        new = max(1, min(CACHED_NEW, inputs.context - length))
    chosen = [whole[(len(whole) * row + len(whole) // 2) // rows % len(whole)] for row in range(rows)]
    return [Window(w.inputs[:length], w.targets[:0], w.encoder) for w in chosen], new


def _decoded(prompts: Sequence[Window], new: int) -> int:
    """Tokens that one run of generation reads."""
    return sum(len(prompt.inputs) + new - 1 for prompt in prompts)


def _cost(inputs: Inputs, sample: dict[int, int], prompts: Sequence[Window], new: int, led: int) -> int:
    return 2 * inputs.fed + FLOOR_RUNS * sum(sample.values()) + led * _decoded(prompts, new)


def _run_windows(
    found: Loaded,
    inputs: Inputs,
    rows: dict[int, int],
    place: Place,
    meter: Meter,
    hidden: list[torch.Tensor],
) -> tuple[list[Piece], dict[int, Piece], torch.Tensor]:
    pieces: list[Piece] = []
    sample: dict[int, Piece] = {}
    losses: list[torch.Tensor] = []
    keep = _kept(inputs, place)
    for i, logits in enumerate(window_logits(found, inputs.windows, meter, hidden)):
        window = inputs.windows[i]
        scored = logits[-len(window.targets) :]
        # A copy: a slice would hold on to its whole batch.
        pieces.append(Piece(window, scored.to("cpu", copy=True) if i in keep else None))
        losses.append(_losses(found.kind, scored, window))
        if i in rows:
            stop = rows[i]
            # Any `stop` ids do for targets: of these runs only the logits are used.
            beginning = Window(window.inputs[:stop], window.inputs[:stop], window.encoder)
            sample[i] = Piece(beginning, logits[:stop].to("cpu", copy=True))
    return pieces, sample, torch.cat(losses)


def _kept(inputs: Inputs, place: Place) -> set[int]:
    """The windows whose logits are kept: all, or as many as memory allows, evenly spaced."""
    size = max(len(window.targets) for window in inputs.windows) * inputs.vocabulary * place.dtype.itemsize
    most = max(1, place.memory.kept() // size)
    count = len(inputs.windows)
    return set(range(count)) if most >= count else {count * i // most for i in range(most)}


def _check_finite(folder: Path, place: Place, pieces: Sequence[Piece], losses: torch.Tensor) -> None:
    good = torch.isfinite(losses).all() and all(
        torch.isfinite(piece.logits).all() for piece in pieces if piece.logits is not None
    )
    if not good:
        raise BadInput(
            f"{folder} itself gives NaN or infinite logits in {dtype_name(place.dtype)}; give an intact model"
        )
