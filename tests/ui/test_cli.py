"""The console script: exit codes, one line on stderr, one JSON document on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def tricksmith(*args: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"TRICKSMITH_DATA": str(data)} if data else {})
    env.pop("REDIS_URL", None)
    return subprocess.run(
        [sys.executable, "-m", "ui.cli", *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a wrong request is refused."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "invalid choice"),
        (("plan",), "MODEL"),
        (("convert", "a", "b"), "--trick"),
        (("submit", "a", "--trick", "flashnorm"), "--to"),
        (("serve", "--port", "99999"), "not a port"),
        (("serve", "--port", "http"), "not a port"),
        (("jobs", "--limit", "0"), "above 0"),
        (("plan", "m", "--tri", "flashnorm"), "unrecognized"),
    ],
)
def test_usage_errors_are_one_line(args: tuple[str, ...], says: str) -> None:
    assert says in refused(tricksmith(*args))


def test_help_is_instant() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        assert tricksmith("--help").returncode == 0
        took.append(time.perf_counter() - began)
    # The promise is 0.3 s; the bound leaves room for a busy machine and is far below importing torch.
    assert min(took) < 1.0


def test_unknown_trick_and_model(tmp_path: Path) -> None:
    assert "unknown trick" in refused(
        tricksmith("plan", str(tmp_path), "--trick", "magic", data=tmp_path / "d")
    )
    line = refused(tricksmith("plan", str(tmp_path / "no such\nfolder"), data=tmp_path / "d"))
    assert "no such" in line


def test_jobs_without_a_server(tmp_path: Path) -> None:
    done = tricksmith("jobs", "--json", data=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert "no job" in refused(tricksmith("status", "abc", "--json", data=tmp_path))
    assert "no job" in refused(tricksmith("cancel", "abc", data=tmp_path))
    assert "no job" in refused(tricksmith("retry", "abc", data=tmp_path))


def test_submit_without_a_worker_says_what_to_do(tmp_path: Path, model: Path) -> None:
    done = tricksmith(
        "submit", str(model), "--trick", "flashnorm", "--to", str(tmp_path / "out"), data=tmp_path / "d"
    )
    line = refused(done)
    assert "tricksmith serve" in line
    assert "--wait" in line


def test_plan_convert_verify(tmp_path: Path, model: Path) -> None:
    planned = tricksmith("plan", str(model), "--json", data=tmp_path / "d")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert plan["fits"]
    assert plan["proof"] < 1e-9

    out = tmp_path / "out"
    converted = tricksmith(
        "convert", str(model), str(out), "--trick", "flashnorm", "--json", data=tmp_path / "d"
    )
    assert converted.returncode == 0, converted.stderr
    assert set(json.loads(converted.stdout)["files"]) <= {p.name for p in out.iterdir()}
    assert "convert" in converted.stderr
    assert "Traceback" not in converted.stderr
    refused(tricksmith("convert", str(model), str(out), "--trick", "flashnorm", data=tmp_path / "d"))

    verified = tricksmith("verify", str(model), str(out), "--json", data=tmp_path / "d")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verdict"] == "equivalent"


def test_submit_and_wait(tmp_path: Path, model: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "out"
    done = tricksmith(
        "submit", str(model), "--trick", "flashnorm", "--to", str(out), "--wait", "--json", data=data
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["verdict"]) == ("published", "equivalent")
    assert "starting Redis and a worker" in done.stderr
    assert (out / "README.md").is_file()
    told = tricksmith("status", job["id"], data=data)
    assert told.returncode == 0
    assert "published" in told.stdout
    assert "equivalent" in told.stdout
