"""Scores for the Hub's benchmark pages: of registered benchmarks alone, measured here, in the Hub's form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
