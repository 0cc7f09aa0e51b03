"""The console script: exit codes, one line on stderr, one JSON document on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ui import demo
from ui.cli import main


@dataclass(frozen=True)
class Answer:
    """What one command said."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line with which a wrong request is refused."""
        assert self.code == 2, self
        assert self.out == ""
        assert len(self.err.splitlines()) == 1, self.err
        return self.err


Tricksmith = Callable[..., Answer]


@pytest.fixture
def tricksmith(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Tricksmith:
    """The command line in this process, on a data folder of the test's own."""
    monkeypatch.setenv("TRICKSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("REDIS_URL", raising=False)

    def run(*args: str) -> Answer:
        capfd.readouterr()
        try:
            code = main(args)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Answer(code, *capfd.readouterr())

    return run


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "invalid choice"),
        (("plan",), "MODEL"),
        (("convert", "a", "b"), "--trick"),
        (("submit", "a", "--to", "b"), "--trick"),
        (("serve", "--port", "99999"), "not a port"),
        (("serve", "--port", "http"), "not a port"),
        (("jobs", "--limit", "0"), "above 0"),
        (("plan", "m", "--tri", "flashnorm"), "unrecognized"),
        (("plan", "/no/such\x1b[2J\nfolder", "--bad\nflag"), "unrecognized"),
    ],
)
def test_usage_errors_are_one_line(tricksmith: Tricksmith, args: tuple[str, ...], says: str) -> None:
    assert says in tricksmith(*args).refusal()


def test_help_is_instant() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ui.cli", "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    # The promise is 0.3 s; the bound leaves room for a busy machine and is far below importing torch.
    assert min(took) < 1.0


def test_unknown_trick_and_model(tricksmith: Tricksmith, tmp_path: Path, model: Path) -> None:
    assert "unknown trick" in tricksmith("plan", str(model), "--trick", "magic").refusal()
    assert "nothing-here" in tricksmith("plan", str(tmp_path / "nothing-here")).refusal()
    assert "nothing-here" in tricksmith("verify", str(model), str(tmp_path / "nothing-here")).refusal()


def test_jobs_without_a_server(tricksmith: Tricksmith) -> None:
    listed = tricksmith("jobs", "--json")
    assert (listed.code, json.loads(listed.out)) == (0, [])
    for command in ("status", "cancel", "retry"):
        assert "no job" in tricksmith(command, "abc", "--json").refusal()


def test_submit_without_a_worker_says_what_to_do(tricksmith: Tricksmith, tmp_path: Path, model: Path) -> None:
    line = tricksmith("submit", str(model), "--trick", "flashnorm", "--to", str(tmp_path / "out")).refusal()
    assert "tricksmith serve" in line
    assert "--wait" in line


def test_plan_in_words(tricksmith: Tricksmith, model: Path) -> None:
    planned = tricksmith("plan", str(model))
    assert planned.code == 0, planned.err
    assert "LlamaForCausalLM" in planned.out
    assert "model.layers.[0-5].post_attention_layernorm (x6)" in planned.out


def test_plan_convert_verify(tricksmith: Tricksmith, tmp_path: Path, small_model: Path) -> None:
    planned = tricksmith("plan", str(small_model), "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    assert plan["fits"]
    assert plan["proof"] < 1e-9

    out = tmp_path / "out"
    converted = tricksmith("convert", str(small_model), str(out), "--trick", "flashnorm", "--json")
    assert converted.code == 0, converted.err
    assert set(json.loads(converted.out)["files"]) <= {p.name for p in out.iterdir()}
    assert "exists" in tricksmith("convert", str(small_model), str(out), "--trick", "flashnorm").refusal()

    verified = tricksmith("verify", str(small_model), str(out), "--json")
    assert verified.code == 0, verified.err
    assert json.loads(verified.out)["verdict"] == "equivalent"
    assert "Traceback" not in verified.err


def test_verify_of_another_model_exits_with_1(
    tricksmith: Tricksmith, tmp_path: Path, small_model: Path
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    other = tmp_path / "other"
    network = LlamaForCausalLM.from_pretrained(small_model)
    torch.nn.init.normal_(network.lm_head.weight)
    network.save_pretrained(other)
    for file in small_model.glob("tokenizer*"):
        (other / file.name).write_bytes(file.read_bytes())
    told = tricksmith("verify", str(small_model), str(other))
    assert told.code == 1, told.err
    assert "Verdict: different" in told.out


def test_submit_and_wait(tricksmith: Tricksmith, tmp_path: Path, small_model: Path) -> None:
    out = tmp_path / "out"
    request = ["submit", str(small_model), "--trick", "flashnorm", "--to", str(out), "--wait", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "ui.cli", *request],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["verdict"]) == ("published", "equivalent")
    assert "starting Redis and a worker" in done.stderr
    assert (out / "README.md").is_file()
    told = tricksmith("status", job["id"])
    assert told.code == 0
    assert "published" in told.out
    assert "equivalent" in told.out


def test_the_demo_leaves_foreign_folders_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ui.cli import guarded

    mine = tmp_path / "out"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert guarded(lambda: demo.demo(out=mine, data=tmp_path / "data")) == 2
    assert "not the demo's" in capfd.readouterr().err
    assert (mine / "thesis.txt").exists()
