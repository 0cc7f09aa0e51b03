"""What `tricksmith verify` says of requests that cannot be carried out: one line, and exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ui.cli import main

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
NO_TEST = """\
task: no_test
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}}}}}
training_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: label
"""
FAR = "task: far\ndataset_path: nobody-at-all/no-such-data\ntest_split: test\noutput_type: multiple_choice\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files that cannot be used as asked, by name."""
    monkeypatch.setenv("TRICKSMITH_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "a", "label": 0}) + "\n")
    (tmp_path / "no_test.yaml").write_text(NO_TEST.format(data=data))
    (tmp_path / "far.yaml").write_text(FAR)
    (tmp_path / "short.txt").write_text("a")
    silent = Path(shutil.copytree(TINY, tmp_path / "silent", ignore=shutil.ignore_patterns("token*")))
    return {
        "tiny": str(TINY),
        "silent": str(silent),
        "no_test": str(tmp_path / "no_test.yaml"),
        "far": str(tmp_path / "far.yaml"),
        "short": str(tmp_path / "short.txt"),
    }


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("tiny", ["--task", "{no_test}"], "has no test or validation split"),
        ("tiny", ["--task", "{far}"], "cannot be run: its data"),
        ("tiny", ["--text", "{short}"], "at least two tokens"),
        ("tiny", ["--text", "/no/such/text.csv"], "is no file"),
        ("tiny", ["--recipe", "splendid"], "no recipe 'splendid'"),
        ("tiny", ["--max-memory", "100MB"], "allow 1GiB or more"),
        ("tiny", ["--task", "tricksmith_copy", "--chat-template"], "has no chat template"),
        ("silent", ["--text", "{short}"], "no tokenizer that loads"),
        ("silent", ["--task", "tricksmith_copy"], "no tokenizer that loads"),
    ],
)
def test_one_line_says_what_is_wrong(
    places: dict[str, str], model: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [option.format(**places) for option in options]
    where = places[model]
    assert main(["verify", where, where, "--tokens", "64", *asked]) == 2
    shown = capsys.readouterr()
    line = shown.err.strip().splitlines()[-1]
    assert line.startswith("tricksmith: ")
    assert words in line
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_text_shorter_than_a_window_is_used_whole(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("The standard library is large.")
    asked = ["verify", places["tiny"], places["tiny"], "--text", str(tmp_path / "few.txt"), "--json"]
    assert main(asked) == 0
    evidence = json.loads(capsys.readouterr().out)
    assert evidence["perplexity"]["bytes"] == len("The standard library is large.")
    assert evidence["settings"]["windows"] == 1
