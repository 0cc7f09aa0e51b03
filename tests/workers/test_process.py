"""The child process: sees no secret, dies when told or when alone, and its death is told in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tricks import BadInput, Cancelled, Checkpoint, TensorInfo, silent
from workers.process import ChildProcess, Crashed, child_environment, how_it_died
from workers.wire import checkpoint_from_json, checkpoint_to_json


def never() -> bool:
    return False


def test_no_secret_reaches_the_child(tmp_path: Path) -> None:
    secrets = {
        "HF_TOKEN": "hf_abcdefgh",
        "HUGGING_FACE_HUB_TOKEN": "hf_abcdefgh",
        "HF_TOKEN_PATH": "/home/me/hf_abcdefgh",
        "REDIS_URL": "redis://:hf_abcdefgh@host",
        "CUDA_TOKEN": "hf_abcdefgh",
        "AWS_SECRET_ACCESS_KEY": "hf_abcdefgh",
        "PYTHONPATH": "/hf_abcdefgh",
        "HF_HOME": "/hf_abcdefgh",
    }
    env = child_environment(tmp_path, {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", **secrets})
    assert "hf_abcdefgh" not in str(env)
    assert (env["PATH"], env["CUDA_VISIBLE_DEVICES"]) == ("/bin", "0")
    assert env["HF_HOME"].startswith(str(tmp_path))
    assert env["HF_HUB_OFFLINE"] == "1"


def test_the_environment_that_the_kernel_shows_holds_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    with ChildProcess(tmp_path, never, grace=1) as child:
        assert "hf_abcdefgh" not in str(psutil.Process(child.pid).environ())


def test_a_bad_request_comes_back_as_the_users_line(tmp_path: Path) -> None:
    with ChildProcess(tmp_path, never, grace=1) as child:
        checkpoint = tmp_path / "checkpoint.json"
        checkpoint.write_text('{"name": "x", "config": {}, "files": [], "index": null, "tensors": []}')
        with pytest.raises(BadInput, match="unknown trick 'nope'"):
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["nope"])
        # One bad request does not end the child.
        with pytest.raises(Crashed, match="FileNotFoundError"):
            child.ask("plan", silent, checkpoint=str(tmp_path / "none"), tricks=["flashnorm"])


def test_a_killed_child_is_told_in_words(tmp_path: Path) -> None:
    with ChildProcess(tmp_path, never, grace=1) as child:
        threading.Timer(0.3, os.kill, args=[child.pid, signal.SIGKILL]).start()
        checkpoint = tmp_path / "fifo"
        os.mkfifo(checkpoint)  # the child waits for a writer that never comes
        with pytest.raises(Crashed, match="memory ran out"):
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["flashnorm"])


def test_a_child_that_does_not_stop_by_itself_is_killed(tmp_path: Path) -> None:
    stop = threading.Event()
    with ChildProcess(tmp_path, stop.is_set, grace=0.5) as child:
        checkpoint = tmp_path / "fifo"
        os.mkfifo(checkpoint)
        threading.Timer(1.0, stop.set).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["flashnorm"])
        assert time.monotonic() - start < 4
        assert not psutil.pid_exists(child.pid)


def test_no_child_outlives_its_worker(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from workers.process import ChildProcess\n"
        "child = ChildProcess(Path(sys.argv[1]), lambda: False, 1); print(child.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout
        child = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


def test_a_crash_has_its_signal_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a traceback\nImportError: no torch\n")
    assert "SIGSEGV" in how_it_died(-signal.SIGSEGV, log)
    assert "ImportError: no torch" in how_it_died(1, log)


def test_a_checkpoint_crosses_unchanged() -> None:
    tensors = {"a": TensorInfo("a", "f.safetensors", "BF16", (2, 3), 0, 12)}
    checkpoint = Checkpoint("m", {"model_type": "llama"}, tensors, ("f.safetensors",), None)
    assert checkpoint_from_json(checkpoint_to_json(checkpoint)) == checkpoint
