"""The comparison: source and converted on the same tokens, one model in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from evals import harness
from evals.evidence import Evidence
from evals.generation import Continuations, Generation, compare_continuations, continue_greedily, pick_prompts
from evals.logits import LogitComparison, LogitDifference
from evals.models import context_length, loaded, read_config, ships_own_code
from evals.perplexity import Perplexity, paired_perplexity, token_losses
from evals.precision import WIDER, dtype_name, storage_dtype
from evals.runs import Progress, exact_matmul, window_logits
from evals.text import Tokens, held_out, random_tokens, text_tokens
from evals.tokenizer import load_tokenizer, tokenizer_changes
from evals.verdict import (
    Check,
    Verdict,
    budget_checks,
    check_budget,
    generation_checks,
    is_noisy,
    noise_checks,
)
from evals.windows import Window, scored_tokens, windows
from tricks import BadInput, Report, silent

WINDOW = 512  # tokens of a window, where the model's context is as long
MOST_TOKENS = 4096
LEAST_TOKENS = 256
NOISY_NOTE = (
    "rounding alone moves the source by {:.2g} nats/token, so small damage could hide below its noise"
)
KEPT_BYTES = 2**30  # for the reference's logits, kept in memory while the other models run


@dataclass
class _Reference:
    """What is kept of the source in the wider dtype; every other run is compared with it."""

    vocabulary: int
    tokens: Tokens
    windows: list[Window]
    prompts: torch.Tensor
    context: int
    progress: Progress
    logits: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    continuations: Continuations | None = None


class _OtherVocabulary(Exception):
    """The converted model predicts over another vocabulary."""


def compare(
    source: Path,
    converted: Path,
    *,
    text: str | None = None,
    lossless: bool = True,
    budget: Mapping[str, float] | None = None,
    tasks: Sequence[str] = (),
    report: Report | None = None,
    tokens: int | None = None,
    device: str | None = None,
) -> Evidence:
    """Measure `converted` against `source` and judge it.

    Args:
        text: what to run both on; by default English text that ships with the package.
        lossless: hold it to the source's own rounding noise alone; otherwise `budget` is what it may differ
        by.
        budget: for approximate tricks, any of `kl` (nats/token, at most), `top1` (share, at least) and
            `perplexity` (relative increase, at most); all that are given must be kept.
        tasks: lm-eval task names, or paths of task YAML files.
        tokens: how many tokens to score; by default 4096, fewer where the vocabulary is so large that their
            logits would take more than 1 GiB.
        device: a torch device; by default the GPU where there is one.

    Raises:
        BadInput: a folder is no model that can be compared, or an argument is wrong.
    """
    started = time.monotonic()
    report = report or silent
    limits = check_budget(lossless, budget)
    read_config(source), read_config(converted)
    harness.check_tasks(tasks)
    storage = storage_dtype(source)
    storage_dtype(converted)  # unreadable weights are found before the source is run
    wide = WIDER[storage]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reasons, notes = tokenizer_changes(source, converted)
    own_code = ships_own_code(converted)

    floor: LogitDifference | None = None
    wide_difference: LogitDifference | None = None
    storage_difference: LogitDifference | None = None
    perplexity: Perplexity | None = None
    generation: Generation | None = None
    checks: list[Check] = []
    budgeted: list[Check] = []
    with exact_matmul():
        reference = _run_source(source, wide, device, text, tokens, report, notes)
        floor = _run_floor(source, storage, device, reference)
        try:
            wide_difference, perplexity, generation = _run_wide(
                converted, wide, device, own_code, reference, reasons
            )
            storage_difference = _run_storage(converted, storage, device, own_code, reference)
        except _OtherVocabulary as difference:
            reasons.append(str(difference))
        else:
            checks = noise_checks(
                floor, wide_difference, storage_difference, dtype_name(wide), dtype_name(storage)
            )
            if is_noisy(floor):
                notes.append(NOISY_NOTE.format(floor.divergence))
            checks += generation_checks(generation, floor)
            budgeted = budget_checks(limits, storage_difference, perplexity)
    verdict, failures = _judge(reasons, checks, budgeted, lossless)
    scores = harness.run_tasks(tasks, source, converted, dtype_name(storage), device, own_code)
    return Evidence(
        verdict=verdict,
        reasons=tuple(failures),
        notes=tuple(notes),
        checks=tuple(checks + budgeted),
        floor=floor,
        wide=wide_difference,
        storage=storage_difference,
        perplexity=perplexity,
        generation=generation,
        tasks=scores,
        settings=_settings(reference, storage, wide, device, lossless, limits, time.monotonic() - started),
    )


def _judge(
    reasons: Sequence[str], checks: Sequence[Check], budgeted: Sequence[Check], lossless: bool
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
        return Verdict.DIFFERENT, [*beyond_noise, "no budget was stated for this approximate conversion"]
    over = [check.reason for check in budgeted if not check.passed]
    return (Verdict.DIFFERENT, over) if over else (Verdict.WITHIN_BUDGET, [])


def _run_source(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    text: str | None,
    limit: int | None,
    report: Report,
    notes: list[str],
) -> _Reference:
    with loaded(folder, dtype, device) as found:
        if found.missing:
            raise BadInput(
                f"{folder} lacks weights that its model needs ({_few(found.missing)}); fetch it again"
            )
        vocabulary = _vocabulary(found.model)
        reference = _prepare(folder, found.model, vocabulary, dtype, text, limit, report, notes)
        for window, logits in zip(
            reference.windows, window_logits(found.model, reference.windows, reference.progress), strict=True
        ):
            reference.logits.append(logits)
            reference.losses.append(token_losses(logits, window.targets))
        reference.vocabulary = reference.logits[0].shape[-1]
        if not all(bool(torch.isfinite(logits.amax(-1)).all()) for logits in reference.logits):
            raise BadInput(
                f"{folder} itself gives NaN or infinite logits in {dtype_name(dtype)}; give an intact model"
            )
        reference.continuations = _generate(found.model, reference)
    return reference


def _prepare(
    folder: Path,
    model: PreTrainedModel,
    vocabulary: int,
    dtype: torch.dtype,
    text: str | None,
    limit: int | None,
    report: Report,
    notes: list[str],
) -> _Reference:
    """Choose the tokens and cut them into windows."""
    count = limit or max(LEAST_TOKENS, min(MOST_TOKENS, KEPT_BYTES // (vocabulary * dtype.itemsize)))
    if count < 2:
        raise BadInput(f"{count} token(s) cannot be scored; ask for at least two")
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        origin = "held-out text of the package" if text is None else "text given by the user"
        tokens = text_tokens(tokenizer, held_out() if text is None else text, count, origin)
    elif text is not None:
        raise BadInput(
            f"{folder} has no tokenizer that loads, so the text cannot be used; leave the text out"
        )
    else:
        tokens = random_tokens(vocabulary, count)
        notes.append("the source has no tokenizer that loads: run on random token ids, without a perplexity")
    if int(tokens.ids.max()) >= vocabulary:
        raise BadInput(
            f"{folder} has a tokenizer with id {int(tokens.ids.max())} but a model of {vocabulary} tokens; "
            "give a folder where they belong together"
        )
    context = context_length(model) or WINDOW
    length = min(WINDOW, context)
    if length < 4:
        raise BadInput(f"{folder} has a context of {context} tokens; at least 4 are needed")
    scored = scored_tokens(tokens.ids, tokens.bos)
    return _Reference(
        vocabulary=vocabulary,
        tokens=tokens,
        windows=list(windows(tokens.ids, length, 3 * length // 4, tokens.bos)),
        prompts=pick_prompts(tokens.ids, tokens.bos, context),
        context=context,
        progress=Progress(report, 4 * scored),
    )


def _run_floor(folder: Path, dtype: torch.dtype, device: str, reference: _Reference) -> LogitDifference:
    comparison = LogitComparison("source", f"source in {dtype_name(dtype)}")
    with loaded(folder, dtype, device) as found:
        _add_all(comparison, found.model, reference)
    return comparison.result()


def _run_wide(
    folder: Path, dtype: torch.dtype, device: str, own_code: bool, reference: _Reference, reasons: list[str]
) -> tuple[LogitDifference, Perplexity | None, Generation]:
    comparison = LogitComparison("source", f"converted in {dtype_name(dtype)}")
    with loaded(folder, dtype, device, own_code) as found:
        _check_vocabulary(_vocabulary(found.model), reference)
        if found.missing:
            reasons.append(f"the converted folder lacks weights that its model needs: {_few(found.missing)}")
        losses = _add_all(comparison, found.model, reference)
        continuations = _generate(found.model, reference)
    assert reference.continuations is not None
    generation = compare_continuations(reference.continuations, continuations, reference.prompts.shape[1])
    if reference.tokens.random:
        return comparison.result(), None, generation
    return comparison.result(), paired_perplexity(torch.cat(reference.losses), torch.cat(losses)), generation


def _run_storage(
    folder: Path, dtype: torch.dtype, device: str, own_code: bool, reference: _Reference
) -> LogitDifference:
    comparison = LogitComparison("source", f"converted in {dtype_name(dtype)}")
    with loaded(folder, dtype, device, own_code) as found:
        _add_all(comparison, found.model, reference)
    return comparison.result()


def _add_all(
    comparison: LogitComparison, model: PreTrainedModel, reference: _Reference
) -> list[torch.Tensor]:
    """Run `model` over the windows into `comparison`; its losses, one tensor a window."""
    losses = []
    runs = window_logits(model, reference.windows, reference.progress)
    for window, expected, logits in zip(reference.windows, reference.logits, runs, strict=True):
        _check_vocabulary(logits.shape[-1], reference)
        comparison.add(expected, logits)
        losses.append(token_losses(logits, window.targets))
    return losses


def _generate(model: PreTrainedModel, reference: _Reference) -> Continuations:
    return continue_greedily(model, reference.prompts, reference.context)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _check_vocabulary(found: int, reference: _Reference) -> None:
    if found != reference.vocabulary:
        raise _OtherVocabulary(
            f"the converted model predicts over {found} tokens, the source over {reference.vocabulary}"
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _settings(
    reference: _Reference,
    storage: torch.dtype,
    wide: torch.dtype,
    device: str,
    lossless: bool,
    budget: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    return {
        "tokens": scored_tokens(reference.tokens.ids, reference.tokens.bos),
        "text": reference.tokens.origin,
        "windows": len(reference.windows),
        "window": max(len(window.inputs) for window in reference.windows),
        "vocabulary": reference.vocabulary,
        "storage_dtype": dtype_name(storage),
        "wide_dtype": dtype_name(wide),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "lossless": lossless,
        "budget": dict(budget),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": round(seconds, 2),
    }
