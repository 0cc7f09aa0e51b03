"""lm-eval tasks on both models."""

from __future__ import annotations

import json

import pytest

from evals import Verdict, compare
from evals.harness import check_tasks
from tricks import BadInput

TASK = """\
task: two_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def test_an_unknown_task_is_one_clear_line(tiny_llama):
    with pytest.raises(BadInput, match="no task 'no_such_task'"):
        compare(tiny_llama, tiny_llama, tasks=["no_such_task"])
    check_tasks([])


def test_a_yaml_task_scores_both_models(tiny_llama, folded, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"Is {n} even?", "label": n % 2}) + "\n" for n in range(6))
    )
    task = tmp_path / "two_words.yaml"
    task.write_text(TASK.format(data=data))
    evidence = compare(tiny_llama, folded(tiny_llama), tokens=100, tasks=[str(task)])
    assert evidence.verdict is Verdict.EQUIVALENT
    scores = evidence.tasks["two_words"]["acc"]
    assert 0 <= scores["source"] <= 1
    assert scores["converted"] == scores["source"]
    assert any(name == "two_words acc" for name, _ in evidence.headline())
