"""Scores for the Hub's benchmark pages: of registered benchmarks alone, measured here, in the Hub's form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from evals.tasks import Metric, TaskResult
from service.eval_results import eval_results
from service.publish import publish
from service.source import resolve
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer

GSM8K = TaskResult("gsm8k", "3", 1319, 5, (Metric("exact_match,strict-match", 0.5, 0.4996),))
OWN = TaskResult("tricksmith_copy", "1", 10, 0, (Metric("acc", 1.0, 1.0),))


def test_only_benchmarks_of_the_hub_are_listed() -> None:
    files = eval_results(dataclasses.replace(EQUIVALENT, tasks=(GSM8K, OWN)))
    assert list(files) == [".eval_results/gsm8k.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 49.96)
    assert entry.notes == "gsm8k, exact_match,strict-match, 5-shot, 1319 documents, by lm-eval"
    assert eval_results(EQUIVALENT) == {}


def task(name: str, documents: int, metric: str, value: float, fewshot: int = 5) -> TaskResult:
    return TaskResult(name, "1", documents, fewshot, (Metric("other", 0.0, 0.1), Metric(metric, 0.0, value)))


@pytest.mark.parametrize(
    ("name", "documents", "metric", "listed"),
    [
        ("gsm8k_cot_zeroshot", 1319, "exact_match,flexible-extract", ("openai/gsm8k", "gsm8k")),
        ("gpqa_diamond_zeroshot", 198, "acc,none", ("Idavidrein/gpqa", "gpqa_diamond")),
        (
            "gpqa_diamond_generative_n_shot",
            198,
            "exact_match,strict-match",
            ("Idavidrein/gpqa", "gpqa_diamond"),
        ),
        ("leaderboard_gpqa_diamond", 198, "acc_norm,none", ("Idavidrein/gpqa", "gpqa_diamond")),
        ("leaderboard_mmlu_pro", 12_032, "acc,none", ("TIGER-Lab/MMLU-Pro", "mmlu_pro")),
        ("gsm8k", 100, "exact_match,strict-match", None),  # a part of it is not a score on it
        ("gsm8k", 1319, "perplexity", None),
        ("gsm8k_platinum_cot", 1319, "exact_match", None),  # other questions
        ("tinyGSM8k", 1319, "exact_match", None),
        ("gpqa_main_zeroshot", 198, "acc", None),  # not the registered task
        ("hellaswag", 10_042, "acc", None),
    ],
)
def test_each_way_to_run_a_benchmark(
    name: str, documents: int, metric: str, listed: tuple[str, str] | None
) -> None:
    files = eval_results(dataclasses.replace(EQUIVALENT, tasks=(task(name, documents, metric, 0.25),)), "a/b")
    assert list(files) == ([] if listed is None else [f".eval_results/{name}.yaml"])
    for text in files.values():
        (entry,) = parse_eval_result_entries(yaml.safe_load(text))
        assert (entry.dataset_id, entry.task_id, entry.value) == (*(listed or ()), 25.0)
        assert (entry.source_url or "").endswith("/a/b/blob/main/evidence.json")


def test_a_benchmark_in_parts_is_one_score() -> None:
    parts = (
        task("mmlu_pro_law", 2_032, "exact_match,custom-extract", 0.5),
        task("mmlu_pro_computer_science", 10_000, "exact_match,custom-extract", 0.25),
    )
    files = eval_results(dataclasses.replace(EQUIVALENT, tasks=parts))
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/mmlu_pro.yaml"]))
    assert entry.value == pytest.approx(100 * (1016 + 2500) / 12_032, abs=1e-4)
    assert eval_results(dataclasses.replace(EQUIVALENT, tasks=parts[:1])) == {}


def test_they_are_published_and_go_with_the_next_conversion(hub: HubServer, tmp_path: Path) -> None:
    source = resolve(str(write_model(tmp_path / "tiny")))
    convert_by_copy(source, tmp_path / "work")
    measured = dataclasses.replace(EQUIVALENT, tasks=(GSM8K,))
    publish(tmp_path / "work", "smith/tiny", evidence=measured, source=source)
    assert ".eval_results/gsm8k.yaml" in hub.repo("smith/tiny").files
    later = resolve(str(write_model(tmp_path / "later" / "tiny", seed=1)))
    convert_by_copy(later, tmp_path / "work2")
    publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=later)
    assert not [name for name in hub.repo("smith/tiny").files if name.startswith(".eval_results")]
