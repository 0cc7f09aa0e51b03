"""lm-eval tasks on both models."""

from __future__ import annotations

import json

import pytest

from evals import HubAway, Verdict, compare
from evals.hub_data import out_of_reach
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
    (result,) = evidence.tasks
    assert (result.task, result.documents, result.requests) == ("two_words", 6, 12)
    (accuracy,) = result.metrics
    assert accuracy.name == "acc"
    assert 0 <= accuracy.source == accuracy.converted <= 1
    assert (accuracy.gained, accuracy.lost, accuracy.mcnemar) == (0, 0, 1.0)
    assert accuracy.low < 0 < accuracy.high
    assert -0.2 < result.likelihoods[0] <= result.likelihoods[3] <= result.likelihoods[-1] < 0.2
    assert any(name == "two_words acc" for name, _ in evidence.headline())


def test_a_task_that_needs_a_key_is_one_clear_line_before_anything_runs(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    (tmp_path / "judge.py").write_text(
        "import os\n\nKEY = os.environ['JUDGE_API_KEY']\n\n\ndef score(doc):\n    return KEY\n"
    )
    task = tmp_path / "judged.yaml"
    task.write_text(
        TASK.format(data=tmp_path / "data.jsonl").replace('"{{question}}"', "!function judge.score")
    )
    told = []
    with pytest.raises(BadInput, match=r"need a key or an accepted licence .*JUDGE_API_KEY") as caught:
        compare(tiny_llama, tiny_llama, tasks=[str(task)], report=lambda *args: told.append(args))
    assert "\n" not in str(caught.value)
    assert told == []


@pytest.mark.parametrize(
    ("error", "words", "away"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectError)"), "out of reach", True),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "come as code", False),
        (
            ValueError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
            "not on the Hub",
            False,
        ),
        (ValueError("Dataset 'a/b' is a gated dataset on the Hub."), "need a key", False),
        (ValueError("the tokenizer said 403 tokens"), "cannot be run: the tokenizer said", False),
    ],
)
def test_what_keeps_a_task_from_running_is_said(error, words, away):
    said = out_of_reach(error, "the task t")
    assert words in str(said)
    assert isinstance(said, HubAway) is away
