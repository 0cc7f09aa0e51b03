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
from workers.environment import child_environment
from workers.forks import Forks
from workers.process import ChildProcess, Crashed, how_it_died
from workers.wire import checkpoint_from_json, checkpoint_to_json


def never() -> bool:
    return False


def test_no_secret_reaches_the_child() -> None:
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
    env = child_environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", **secrets})
    assert "hf_abcdefgh" not in str(env)
    assert (env["PATH"], env["CUDA_VISIBLE_DEVICES"]) == ("/bin", "0")
    assert env["HF_HOME"] == "hf"
    assert env["HF_HUB_OFFLINE"] == "1"


def test_the_environment_that_the_kernel_shows_holds_no_token(forks: Forks, tmp_path: Path) -> None:
    with ChildProcess(forks, tmp_path, never, grace=1) as child:
        assert forks.pid is not None
        for pid in (child.pid, forks.pid):
            assert b"hf_abcdefgh" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_bad_request_comes_back_as_the_users_line(forks: Forks, tmp_path: Path) -> None:
    with ChildProcess(forks, tmp_path, never, grace=1) as child:
        checkpoint = tmp_path / "checkpoint.json"
        checkpoint.write_text('{"name": "x", "config": {}, "files": [], "index": null, "tensors": []}')
        with pytest.raises(BadInput, match="unknown trick 'nope'"):
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["nope"])
        # One bad request does not end the child.
        with pytest.raises(Crashed, match="FileNotFoundError"):
            child.ask("plan", silent, checkpoint=str(tmp_path / "none"), tricks=["flashnorm"])


def test_a_killed_child_is_told_in_words(forks: Forks, tmp_path: Path) -> None:
    with ChildProcess(forks, tmp_path, never, grace=1) as child:
        threading.Timer(0.3, os.kill, args=[child.pid, signal.SIGKILL]).start()
        checkpoint = tmp_path / "fifo"
        os.mkfifo(checkpoint)  # the child waits for a writer that never comes
        with pytest.raises(Crashed, match="killed from outside"):
            child.ask("plan", silent, checkpoint=str(checkpoint), tricks=["flashnorm"])


def test_a_child_that_does_not_stop_by_itself_is_killed(forks: Forks, tmp_path: Path) -> None:
    stop = threading.Event()
    with ChildProcess(forks, tmp_path, stop.is_set, grace=0.5) as child:
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
        "import os, sys; from pathlib import Path; from workers.forks import Forks\n"
        "from workers.process import ChildProcess\n"
        "folder = Path(sys.argv[1]); forks = Forks(folder / 'log')\n"
        "child = ChildProcess(forks, folder, lambda: False, 1); print(child.pid, forks.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout
        left = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        worker.kill()
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive


def test_a_crash_has_its_signal_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a traceback\nImportError: no torch\n")
    assert "SIGSEGV" in str(how_it_died(-signal.SIGSEGV, log))
    assert "ImportError: no torch" in str(how_it_died(1, log))
    killed = how_it_died(-signal.SIGKILL, log, out_of_memory=True)
    assert ("memory ran out" in str(killed), killed.cause) == (True, "memory")


def test_a_checkpoint_crosses_unchanged() -> None:
    tensors = {"a": TensorInfo("a", "f.safetensors", "BF16", (2, 3), 0, 12)}
    checkpoint = Checkpoint("m", {"model_type": "llama"}, tensors, ("f.safetensors",), None)
    assert checkpoint_from_json(checkpoint_to_json(checkpoint)) == checkpoint
