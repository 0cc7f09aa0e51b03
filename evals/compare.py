"""The comparison: source and converted on the same tokens, one model in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from evals import harness
from evals.cached import Cached
from evals.evidence import Evidence
from evals.files import compare_files
from evals.generation import Continuations, Generation, compare_continuations
from evals.layout import same_weights_laid_out
from evals.logits import LogitComparison, LogitDifference
from evals.memory import MemoryLimit
from evals.models import Kind, Loaded, Place, kind_of, loaded, read_config
from evals.own_code import runs_own_code
from evals.passes import exact_matmul
from evals.perplexity import Perplexity, paired_perplexity
from evals.precision import WIDER, dtype_name, storage_dtype
from evals.recipe import RECIPES, Recipe, change, reaching
from evals.reference import OtherVocabulary, Piece, Reference, decode, few, run_pieces, run_source
from evals.rounding import round_once_more
from evals.series import series
from evals.tasks import TaskResult
from evals.tokenizer import tokenizer_changes
from evals.verdict import (
    LOOSE_DIVERGENCE,
    Check,
    Floor,
    Verdict,
    budget_checks,
    budget_of,
    check_budget,
    generation_checks,
    loose_checks,
    rounding_check,
    wide_checks,
)
from tricks import Plan, Report, exact_tokens, silent

SCALING = frozenset({"flashnorm"})
"""Tricks that only scale rows or columns of weights: each is computed exactly and rounded once."""

NOISY_NOTE = (
    "rounding alone moves the source by {:.2g} nats/token, so small damage could hide below its noise"
)
OWN_CACHE = frozenset({"slim"})
"""Tricks that cache something else than keys and values."""
AGAIN_NOTE = (
    "a limit was not kept at first: the noise that it comes from was measured again over the whole text"
)


@dataclass
class _Comparison:
    """One comparison's models, places and what was measured so far."""

    source: Path
    converted: Path
    kind: Kind
    wide: Place
    stored: Place
    own_code: bool
    lossless: bool
    sharp: bool
    own_cache: bool
    floors: list[LogitComparison] = field(default_factory=list)
    rounded: LogitComparison | None = None
    in_wide: LogitComparison | None = None
    beside_rounded: LogitComparison | None = None  # `in_wide` on the positions of `rounded`
    in_storage: LogitComparison | None = None
    decoded: LogitDifference | None = None
    source_led: Continuations | None = None  # in the storage dtype, where the cache is the conversion's own
    cached: Cached | None = None
    generation: Generation | None = None
    losses: torch.Tensor | None = None
    hidden: list[torch.Tensor] = field(default_factory=list)
    floor_hidden: list[torch.Tensor] = field(default_factory=list)


def compare(
    source: Path,
    converted: Path,
    *,
    recipe: Recipe = RECIPES["quick"],
    lossless: bool = True,
    budget: Mapping[str, float] | None = None,
    tricks: Sequence[str] | None = None,
    plan: Plan | None = None,
    text: str | None = None,
    tasks: Sequence[str] = (),
    tokens: int | None = None,
    device: str | None = None,
    memory: MemoryLimit | None = None,
    cache: Path | None = None,
    report: Report | None = None,
) -> Evidence:
    """Measure `converted` against `source` and judge it.

    Args:
        recipe: how much is measured, and on what.
        lossless: hold it to the source's own rounding noise alone; otherwise `budget` is what it may differ
            by.
        budget: for approximate tricks, any of `kl` (nats/token, at most), `top1` (share, at least) and
            `perplexity` (relative increase, at most); all that are given must be kept. None reads options
            of these names from the tricks.
        tricks: the tricks that were applied, as written; None reads them from the converted folder's
            `conversion.json`, where there is one.
        plan: what was carried out, where the caller has it; otherwise it is made again from the tricks.
        text, tasks, tokens: instead of the recipe's.
        device: a torch device; by default the GPU where there is one.
        memory: the most to hold; by default what is free.
        cache: a folder in which the source's task results are kept for the next comparison.
        report: told of progress, in tokens and then in task requests.

    Raises:
        BadInput: a folder is no model that can be compared, or an argument is wrong.
    """
    started = time.monotonic()
    recipe = change(recipe, {"text": text, "tasks": list(tasks) or None, "tokens": tokens})
    applied = _tricks_of(converted) if tricks is None else list(tricks)
    recipe = reaching(recipe, 0 if lossless else exact_tokens(applied))
    limits = check_budget(lossless, budget or (None if lossless else budget_of(applied)))
    config = read_config(source)
    own_code = runs_own_code(converted, read_config(converted), config)
    storage = storage_dtype(source)
    storage_dtype(converted)  # unreadable weights are found before the source is run
    suite = harness.check_recipe(recipe, report or silent)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    memory = memory or MemoryLimit()
    files = compare_files(source, converted, applied, plan, lossless, report or silent)
    reasons, notes = tokenizer_changes(source, converted)
    notes += files.notes
    names = {trick.split(":")[0] for trick in applied}
    run = _Comparison(
        source=source,
        converted=converted,
        kind=kind_of(config),
        wide=Place(WIDER[storage], device, memory),
        stored=Place(storage, device, memory),
        own_code=own_code,
        lossless=lossless,
        sharp=lossless and not own_code and names <= SCALING and same_weights_laid_out(source, converted),
        own_cache=bool(names & OWN_CACHE),
    )
    with exact_matmul():
        reference = run_source(
            source, run.kind, run.wide, storage, recipe, report or silent, run.sharp, run.own_cache
        )
        try:
            checks, budgeted, perplexity, words = _measure(run, reference, recipe, limits, reasons)
            notes += words
        except OtherVocabulary as difference:
            reasons.append(str(difference))
            checks, budgeted, perplexity = [], [], None
    results: tuple[TaskResult, ...] = ()
    if suite is not None and run.in_wide is not None:
        results, words = harness.run_tasks(
            suite, recipe, source, converted, run.kind, run.stored, own_code, cache, report or silent
        )
        notes += words
        checks += harness.task_checks(results)
    verdict, failures = _judge([*files.reasons, *reasons], checks, budgeted, lossless, applied)
    return Evidence(
        verdict=verdict,
        reasons=tuple(failures),
        notes=(*reference.notes, *notes, *reference.meter.notes),
        checks=tuple(checks + budgeted),
        weights=files.weights,
        floors=tuple(comparison.result() for comparison in run.floors),
        rounded=_result(run.rounded),
        wide=_result(run.in_wide),
        storage=_result(run.in_storage),
        decode=run.decoded,
        cached=run.cached,
        perplexity=perplexity,
        generation=run.generation,
        tasks=results,
        series=_series(run, reference),
        settings=_settings(run, reference, recipe, limits, time.monotonic() - started),
    )


def _measure(
    run: _Comparison, reference: Reference, recipe: Recipe, limits: Mapping[str, float], reasons: list[str]
) -> tuple[list[Check], list[Check], Perplexity | None, list[str]]:
    """Run the converted model, and the source for its noise; a second time over all of it where in doubt."""
    notes: list[str] = []
    run.floors = _run_floors(run, reference, list(reference.sample.values()))
    run.rounded = reference.rounded
    _run_converted(run, reference, reasons)
    if _failed(run) and not reasons and _worth_another_look(run):
        notes.append(AGAIN_NOTE)
        _look_again(run, reference)
    checks = _checks(run)
    floor = _floor(run)
    if floor.noisy:
        notes.append(NOISY_NOTE.format(floor.divergence))
    if run.lossless and not run.sharp:
        notes.append("held to the noise of activations only: the tricks do more than scale weights")
    perplexity = None
    if reference.inputs.text is not None and run.losses is not None:
        perplexity = paired_perplexity(
            reference.losses, run.losses, reference.inputs.text, recipe.loss_margin
        )
    assert run.in_storage is not None
    return checks, budget_checks(limits, run.in_storage.result(), perplexity), perplexity, notes


def _look_again(run: _Comparison, reference: Reference) -> None:
    """Measure over the whole text what a limit that was not kept comes from.

    Each step is one more pass, so only what the failed checks ask for is run, and only until they are kept.
    """
    whole = [piece for piece in reference.pieces if piece.logits is not None]
    for number in range(len(run.floors)):
        if _failed(run) - {"rounded"}:
            run.floors[number] = _run_floors(run, reference, whole, only=number)[0]
    if run.lossless and "stored" in _failed(run):
        _run_stored(run, reference, whole)
    if run.rounded is not None and "rounded" in _failed(run):
        _run_rounded(run, reference, whole)
        run.beside_rounded = run.in_wide


def _run_floors(
    run: _Comparison, reference: Reference, pieces: list[Piece], only: int | None = None
) -> list[LogitComparison]:
    """The source in its storage dtype: as it loads and in batches, and with plain attention row by row.

    `only` one of the two.
    """
    name = f"source in {dtype_name(run.stored.dtype)}"
    meter = reference.meter
    floors = []
    with loaded(run.source, run.kind, run.stored) as found:
        if only != 1:
            hidden: list[torch.Tensor] = []
            floors.append(run_pieces(found, pieces, meter, "source", name, hidden)[0])
            run.floor_hidden = hidden
        if run.own_cache and run.source_led is None:
            run.source_led = decode(found, reference)
        if only != 0:
            batch, meter.batch = meter.batch, 1
            name += _plain_attention(found)
            floors.append(run_pieces(found, pieces, meter, "source", f"{name}, row by row")[0])
            meter.batch = min(batch, meter.batch) if meter.batch > 1 else batch
    return floors


def _plain_attention(found: Loaded) -> str:
    """Switch to it; a class that knows one attention only says so, and still runs row by row."""
    try:
        found.model.set_attn_implementation("eager")
    except ValueError:
        return ""
    return ", plain attention"


def _run_rounded(run: _Comparison, reference: Reference, pieces: list[Piece]) -> None:
    with loaded(run.source, run.kind, run.wide) as found:
        round_once_more(found.model, run.stored.dtype)
        name = "source with its weights rounded once more"
        run.rounded = run_pieces(found, pieces, reference.meter, "source", name)[0]


def _run_converted(run: _Comparison, reference: Reference, reasons: list[str]) -> None:
    """The converted model in both dtypes.

    A lossless one is run over the whole text in the wider dtype, where little noise hides a difference; an
    approximate one in the dtype in which it will be used.
    """
    meter = reference.meter
    in_wide = f"converted in {dtype_name(run.wide.dtype)}"
    with loaded(run.converted, run.kind, run.wide, run.own_code) as found:
        if found.missing:
            reasons.append(f"the converted folder lacks weights that its model needs: {few(found.missing)}")
        if run.lossless:
            run.beside_rounded = LogitComparison("source", in_wide)
            beside = (run.beside_rounded, reference.sample)
            run.in_wide, run.losses = run_pieces(
                found, reference.pieces, meter, "source", in_wide, run.hidden, beside
            )
        else:
            sample = list(reference.sample.values())
            run.in_wide = run_pieces(found, sample, meter, "source", in_wide, run.hidden)[0]
        led = decode(found, reference)
    if led is not None and reference.continuations is not None:
        wrote = reference.continuations
        run.generation = compare_continuations(wrote, led, len(reference.prompts[0].inputs))
        steps = LogitComparison("source", f"{in_wide}, cached")
        steps.add(wrote.logits.flatten(0, 1), led.logits.flatten(0, 1))
        run.decoded = steps.result()
    if run.lossless:
        _run_stored(run, reference, list(reference.sample.values()))
    else:
        run.losses = _run_stored(run, reference, reference.pieces)


def _run_stored(run: _Comparison, reference: Reference, pieces: list[Piece]) -> torch.Tensor:
    name = f"converted in {dtype_name(run.stored.dtype)}"
    with loaded(run.converted, run.kind, run.stored, run.own_code) as found:
        run.in_storage, losses = run_pieces(found, pieces, reference.meter, "source", name)
        if run.source_led is not None and reference.continuations is not None and run.cached is None:
            led = decode(found, reference)
            assert led is not None
            stored = dtype_name(run.stored.dtype)
            run.cached = Cached.of(reference.continuations, run.source_led, led, stored)
    return losses


def _floor(run: _Comparison) -> Floor:
    own = [*run.floors, *([run.rounded] if run.rounded is not None else [])]
    return Floor.of([comparison.result() for comparison in own])


def _checks(run: _Comparison) -> list[Check]:
    return [check for checks in _grouped(run).values() for check in checks]


def _failed(run: _Comparison) -> set[str]:
    """The groups of checks in which one is not kept."""
    return {name for name, checks in _grouped(run).items() if not all(check.passed for check in checks)}


def _grouped(run: _Comparison) -> dict[str, list[Check]]:
    """All checks, by the run that is held to a limit."""
    assert run.in_wide is not None
    assert run.in_storage is not None
    floor, wide = _floor(run), run.in_wide.result()
    checks = {"wide": wide_checks(floor, wide)}
    if run.rounded is not None and run.beside_rounded is not None and not floor.noisy:
        checks["rounded"] = [rounding_check(run.rounded.result(), run.beside_rounded.result())]
    stored = f"in {dtype_name(run.stored.dtype)}"
    checks["stored"] = loose_checks(floor, run.in_storage.result(), stored)
    if run.decoded is not None and run.generation is not None:
        checks["decoded"] = loose_checks(floor, run.decoded, "of cached decoding")
        checks["decoded"] += generation_checks(run.generation, floor)
    if run.cached is not None:
        checks["cached"] = run.cached.checks(floor)
    return checks


def _worth_another_look(run: _Comparison) -> bool:
    """NaN stays NaN, and where most positions are off no rare event explains it."""
    assert run.in_wide is not None
    usual = max(comparison.result().median_divergence for comparison in run.floors)
    return run.in_wide.result().median_divergence <= LOOSE_DIVERGENCE * usual


def _remedy(tricks: Sequence[str]) -> str:
    """What to do where a conversion that may lose something lost more than rounding does."""
    if [trick.partition(":")[0] for trick in tricks] == ["slim"]:
        return (
            "slim's cache loses more than the source's own rounding; convert with residual=auto and a lower "
            "target, a larger residual, or another mode"
        )
    return "no budget was stated for this approximate conversion; state one, as in approximate:kl=0.01"


def _judge(
    reasons: Sequence[str],
    checks: Sequence[Check],
    budgeted: Sequence[Check],
    lossless: bool,
    tricks: Sequence[str] = (),
) -> tuple[Verdict, list[str]]:
    """The verdict, and where it is `different` why."""
    if reasons:
        return Verdict.DIFFERENT, [*reasons, *(check.reason for check in checks if not check.passed)]
    beyond_noise = [check.reason for check in checks if not check.passed]
    if not beyond_noise:
        return Verdict.EQUIVALENT, []
    if lossless:
        return Verdict.DIFFERENT, beyond_noise
    if not budgeted:
        return Verdict.DIFFERENT, [*beyond_noise, _remedy(tricks)]
    over = [check.reason for check in budgeted if not check.passed]
    return (Verdict.DIFFERENT, over) if over else (Verdict.WITHIN_BUDGET, [])


def _tricks_of(converted: Path) -> list[str]:
    """The tricks in the folder's `conversion.json`, as written; none where there is no such file."""
    try:
        recipe = json.loads((converted / "conversion.json").read_text(encoding="utf-8"))["recipe"]
        return [str(trick) for trick in recipe]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _result(comparison: LogitComparison | None) -> LogitDifference | None:
    return None if comparison is None else comparison.result()


def _series(run: _Comparison, reference: Reference) -> dict[str, Any]:
    if run.in_wide is None or run.in_storage is None:
        return {}
    full = run.in_wide if run.lossless else run.in_storage
    return series(reference, full, run.losses, run.hidden, run.floor_hidden)


def _settings(
    run: _Comparison, reference: Reference, recipe: Recipe, budget: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    inputs, meter, device = reference.inputs, reference.meter, run.wide.device
    return {
        "recipe": recipe.to_json(),
        "kind": run.kind.value,
        "tokens": inputs.scored,
        "text": inputs.tokens.origin,
        "windows": len(inputs.windows),
        "window": max(len(window.inputs) for window in inputs.windows),
        "compared": sum(piece.logits is not None for piece in reference.pieces),
        "passes": round(meter.done / inputs.fed, 3),
        "batch": meter.batch,
        "vocabulary": reference.vocabulary,
        "storage_dtype": dtype_name(run.stored.dtype),
        "wide_dtype": dtype_name(run.wide.dtype),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "memory": dataclasses.asdict(run.wide.memory),
        "lossless": run.lossless,
        "budget": dict(budget),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": round(seconds, 2),
    }
