"""Scores for the Hub's benchmark pages: `.eval_results/*.yaml`, of what was measured on this very model.

The form is huggingface_hub's own (https://huggingface.co/docs/hub/eval-results): it takes scores on datasets
that are registered as benchmarks, and no others. Of these, lm-eval runs GSM8K, GPQA (diamond) and MMLU-Pro;
the rest of the list (HLE, SWE-bench, AIME 2026, OCR, agents) needs another harness. A score is of the whole
benchmark: a part of its documents, as the shorter recipes measure, stands on the card and in `evidence.json`.
Scores are given in percent, as those pages show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from service.hub import endpoint

if TYPE_CHECKING:
    from evals import Evidence
    from evals.tasks import Metric, TaskResult

FOLDER = ".eval_results"


@dataclass(frozen=True)
class _Benchmark:
    """A registered benchmark: its documents, which lm-eval tasks run it, and their metric that is its score.

    Tasks whose names have the same `run` in them are parts of one run.
    """

    tasks: re.Pattern[str]
    metrics: tuple[str, ...]
    dataset: str
    task_id: str
    documents: int


_BENCHMARKS = (
    _Benchmark(
        re.compile(r"(?P<run>gsm8k(?:_cot(?:_llama|_zeroshot)?)?)"),
        ("exact_match",),
        "openai/gsm8k",
        "gsm8k",
        1319,
    ),
    _Benchmark(
        re.compile(r"(?P<run>(?:leaderboard_)?gpqa_diamond(?:_(?:cot_|generative_)?(?:n_shot|zeroshot))?)"),
        ("acc", "exact_match", "acc_norm"),
        "Idavidrein/gpqa",
        "gpqa_diamond",
        198,
    ),
    _Benchmark(
        re.compile(r"(?P<run>leaderboard_mmlu_pro|mmlu_pro_llama|mmlu_pro)(?:_[a-z_]+)?"),
        ("exact_match", "acc"),
        "TIGER-Lab/MMLU-Pro",
        "mmlu_pro",
        12_032,
    ),
)


def eval_results(evidence: Evidence, to: str | None = None) -> dict[str, str]:
    """File name -> YAML text, for every benchmark of the Hub that the evidence measured whole.

    `to` is the Hub id of the converted model, whose `evidence.json` is named as the scores' source.
    """
    files: dict[str, str] = {}
    for known in _BENCHMARKS:
        runs: dict[str, list[TaskResult]] = {}
        for task in evidence.tasks:
            if match := known.tasks.fullmatch(task.task):
                runs.setdefault(match["run"], []).append(task)
        for run, parts in runs.items():
            entry = _entry(known, run, parts, to)
            if entry is not None:
                text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
                files[f"{FOLDER}/{run}.yaml"] = text
    return files


def _entry(known: _Benchmark, run: str, parts: list[TaskResult], to: str | None) -> EvalResultEntry | None:
    """The score of one run over all its parts; None where it is not of the whole benchmark."""
    scores = [_score(part, known.metrics) for part in parts]
    documents = sum(part.documents for part in parts)
    found = [score for score in scores if score is not None]
    one_metric = len({score.name for score in found}) == 1 and len(found) == len(parts)
    if documents != known.documents or not one_metric or len({part.fewshot for part in parts}) != 1:
        return None
    value = sum(part.documents * score.converted for part, score in zip(parts, found, strict=True))
    return EvalResultEntry(
        dataset_id=known.dataset,
        task_id=known.task_id,
        value=round(100 * value / documents, 4),
        source_url=None if to is None else f"{endpoint()}/{to}/blob/main/evidence.json",
        source_name=None if to is None else "Evidence of the conversion",
        notes=f"{run}, {found[0].name}, {parts[0].fewshot}-shot, {documents} documents, by lm-eval",
    )


def _score(task: TaskResult, metrics: Iterable[str]) -> Metric | None:
    """The first of `metrics` that the task has; lm-eval writes a metric as `name,filter`."""
    return next((m for name in metrics for m in task.metrics if m.name.split(",")[0] == name), None)


def write_eval_results(folder: Path, evidence: Evidence, to: str | None = None) -> list[str]:
    """Write them into the converted `folder`; returns their names in it."""
    files = eval_results(evidence, to)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(files)
