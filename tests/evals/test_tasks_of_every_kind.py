"""lm-eval's four kinds of task on a damaged model: paired figures against scipy's and lm-eval's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evals import Recipe, Verdict, compare
from evals.tasks import Run, pair
from tricks import BadInput

HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
training_split: train
fewshot_split: train
test_split: test
output_type: {kind}
"""
KINDS = {
    "multiple_choice": """\
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "loglikelihood": """\
doc_to_text: "{{text}}"
doc_to_target: "{{choices[label]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "loglikelihood_rolling": """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "generate_until": """\
doc_to_text: "{{text}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"text": f"{n}, {n + 1}, {n + 2},", "choices": [f" {n + 3}", f" {n + 7}"], "label": 0}
        for n in range(1, 13)
    ]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for kind, rest in KINDS.items():
        head = HEAD.format(
            name=f"own_{kind}", kind=kind, train=folder / "train.jsonl", test=folder / "test.jsonl"
        )
        if kind == "loglikelihood_rolling":
            head = head.replace("training_split: train\nfewshot_split: train\n", "")
        (folder / f"{kind}.yaml").write_text(head + rest)
        files.append(str(folder / f"{kind}.yaml"))
    return files


@pytest.fixture(scope="module")
def with_template(tmp_path_factory, request) -> Path:
    tiny = Path(__file__).parents[2] / "models" / "tiny-llama"
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("chat") / "model"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return folder


def test_every_kind_of_task_is_paired_with_examples_template_and_limit(
    with_template, edited, tasks, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def spoil(tensors):
        name = "model.layers.3.mlp.down_proj.weight"
        tensors[name] = tensors[name].roll(1, dims=0)

    spoilt = edited(with_template, spoil)
    recipe = Recipe(tokens=64, tasks=tuple(tasks[:2] + tasks[3:]), limit=8, fewshot=2, chat_template=True)
    evidence = compare(with_template, spoilt, recipe=recipe)
    assert evidence.verdict is Verdict.DIFFERENT
    choice, likely, generate = evidence.tasks
    assert [(t.documents, t.fewshot) for t in evidence.tasks] == [(8, 2)] * 3
    assert choice.requests == 16
    assert likely.requests == 8
    assert len(set(choice.likelihoods)) == 7
    assert generate.same_texts is not None
    for task in evidence.tasks:
        for metric in task.metrics:
            if metric.gained is None:
                continue
            flips = metric.gained + metric.lost
            expected = stats.binomtest(metric.gained, flips).pvalue if flips else 1.0
            assert metric.mcnemar == pytest.approx(expected)
            assert metric.difference == pytest.approx(metric.converted - metric.source)
    rolling = compare(with_template, spoilt, recipe=Recipe(tokens=64, tasks=(tasks[2],), limit=5))
    words = {metric.name: metric for metric in rolling.tasks[0].metrics}["word_perplexity"]
    assert words.difference == pytest.approx(np.log(words.converted / words.source), rel=1e-4)
    assert words.low < words.difference < words.high


def test_pairs_are_joined_as_scipy_would():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 60).tolist()
    b = [1 - x if flip else x for x, flip in zip(a, rng.random(60) < 0.2, strict=True)]
    c, d = rng.normal(size=60).tolist(), rng.normal(0.3, size=60).tolist()
    runs = [
        Run("t", "1", 0, {"acc": np.mean(x), "f1": np.mean(y)}, ["?"] * 60, {"acc": x, "f1": y})
        for x, y in ((a, c), (b, d))
    ]
    accuracy, real = pair(*runs, margin=0.05).metrics
    gained, lost = (
        sum(y > x for x, y in zip(a, b, strict=True)),
        sum(x > y for x, y in zip(a, b, strict=True)),
    )
    assert (accuracy.gained, accuracy.lost) == (gained, lost)
    assert accuracy.mcnemar == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    paired = stats.ttest_rel(d, c)
    assert real.chance == pytest.approx(paired.pvalue)
    assert (real.low, real.high) == pytest.approx(tuple(paired.confidence_interval(0.95)))
    moved = np.subtract(d, c)
    both = [
        stats.ttest_1samp(moved, m, alternative=s).pvalue for m, s in ((-0.05, "greater"), (0.05, "less"))
    ]
    assert real.equivalence == pytest.approx(max(both))


def test_a_template_that_the_model_does_not_have_is_one_clear_line(tiny_llama):
    recipe = Recipe(tokens=64, tasks=("tricksmith_copy",), limit=2, chat_template=True)
    with pytest.raises(BadInput, match="no chat template"):
        compare(tiny_llama, tiny_llama, recipe=recipe)
