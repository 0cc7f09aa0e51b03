"""Scores for the Hub's benchmark pages: `.eval_results/*.yaml`, of what was measured on this very model.

Only for lm-eval tasks whose data are a registered benchmark of the Hub: other results stand on the card and
in `evidence.json`. The form is huggingface_hub's own (https://huggingface.co/docs/hub/eval-results). Scores
are given in percent, as those pages show them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

if TYPE_CHECKING:
    from evals import Evidence

FOLDER = ".eval_results"


@dataclass(frozen=True)
class _Benchmark:
    """A registered benchmark: which lm-eval tasks run it, and which of their metrics is its score."""

    task: re.Pattern[str]
    metric: str
    dataset: str
    task_id: str


_BENCHMARKS = (
    _Benchmark(re.compile(r"gsm8k(?:_cot)?"), "exact_match", "openai/gsm8k", "gsm8k"),
    _Benchmark(re.compile(r"gpqa_diamond_\w+"), "acc", "Idavidrein/gpqa", "gpqa_diamond"),
    _Benchmark(re.compile(r"mmlu_pro"), "exact_match", "TIGER-Lab/MMLU-Pro", "mmlu_pro"),
)


def eval_results(evidence: Evidence) -> dict[str, str]:
    """File name -> YAML text, for every task of the evidence that is a benchmark of the Hub."""
    files: dict[str, str] = {}
    for task in evidence.tasks:
        known = next((one for one in _BENCHMARKS if one.task.fullmatch(task.task)), None)
        if known is None:
            continue
        metric = next((m for m in task.metrics if m.name.split(",")[0] == known.metric), None)
        if metric is None:
            continue
        entry = EvalResultEntry(
            dataset_id=known.dataset,
            task_id=known.task_id,
            value=round(100 * metric.converted, 4),
            notes=f"{task.task}, {metric.name}, {task.fewshot}-shot, {task.documents} documents, by lm-eval",
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        files[f"{FOLDER}/{task.task}.yaml"] = text
    return files


def write_eval_results(folder: Path, evidence: Evidence) -> list[str]:
    """Write them into the converted `folder`; returns their names in it."""
    files = eval_results(evidence)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(files)
