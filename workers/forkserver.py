"""The process that children are forked from: it has the libraries in memory, and nothing else.

Started by `workers.forks` as `python -P -m workers.forkserver FD` with an environment without secrets
(`environment.py`). It imports what a job needs, never looks at a GPU, holds no token and reads no weights;
then it forks one child per request, in about a millisecond instead of the seconds that the imports take, and
tells each child's exit code. What a child had started dies with it. It ends when the worker's end of its
socket closes, and all that it ever forked ends with it.

A request is one JSON object with five file descriptors: the child's input, output and log, the lock of its
work folder, and a pipe for the exit code. Answers are pids, one line each.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from workers.trees import adopt_orphans, end_descendants

PRELOAD = ("numpy", "torch", "transformers", "safetensors.torch", "tokenizers", "tricks", "evals")
OOM_SCORE = "500"  # of 1000: where memory runs out, the kernel takes a child before its worker
MOST = 1 << 20  # bytes of one request
LOCK_FD = 3  # where a child holds the lock of its work folder, for as long as it lives


class ForkServer:
    """Answers requests on `channel` until it closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._codes: dict[int, int] = {}  # pid -> where its exit code is told
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Fork and reap, in the one thread of this process."""
        signal.set_wakeup_fd(self._wakeup[1])
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wakeup[0], selectors.EVENT_READ)
            while True:
                for ready, _ in selector.select():
                    if ready.fileobj is self._channel:
                        message, fds, _, _ = socket.recv_fds(self._channel, MOST, 5)
                        if not message:
                            end_descendants(os.getpid())
                            return
                        self._channel.send(b"%d\n" % self._fork(json.loads(message), fds))
                    else:
                        with suppress(BlockingIOError):
                            os.read(self._wakeup[0], 4096)
                        self._reap()

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            self._become(request, fds)
        *theirs, code = fds
        for fd in theirs:
            os.close(fd)
        self._codes[pid] = code
        return pid

    def _reap(self) -> None:
        """Tell the codes of children that ended; the rest that ended here were their orphans."""
        for pid, fd in list(self._codes.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._codes[pid]
                end_descendants(os.getpid(), spared=self._codes)  # its orphans are our children now
                with suppress(BrokenPipeError):
                    os.write(fd, b"%d\n" % os.waitstatus_to_exitcode(status))
                os.close(fd)
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid in self._codes:
                    break  # it ended just now: the next signal is its own
                os.waitpid(ended.si_pid, 0)

    def _become(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        """From here on this process is the child of one job."""
        code = 1
        try:
            os.setsid()
            adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _arrange(fds[:4])
            os.chdir(request["folder"])
            os.environ.update(request["env"])
            _limit(request["limits"])
            with suppress(OSError):  # only Linux has it
                Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)

            if request["anew"]:
                threads = str(request["threads"])
                os.execv(sys.executable, [sys.executable, "-P", "-m", "workers.child", threads])

            from workers import child

            child.main(request["threads"])
            code = 0
        except BaseException:  # noqa: BLE001 (the copy ends here, whatever it was)
            traceback.print_exc()
        finally:
            # Not the end of a program that was started, but of a copy: nothing of the server's is cleaned up.
            os._exit(code)


def _arrange(fds: list[int]) -> None:
    """Make `fds` 0, 1, 2 and `LOCK_FD`, and close all others, those of other children among them."""
    high = [os.dup2(fd, 100 + n) for n, fd in enumerate(fds)]
    for target, fd in enumerate(high):
        os.dup2(fd, target)
    os.closerange(LOCK_FD + 1, 4096)


def _limit(limits: dict[str, int]) -> None:
    """Hold this process to its limits (bytes), and leave no core dump: it would hold weights."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, amount in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))


def main() -> None:
    """Import everything, then serve."""
    for name in PRELOAD:
        importlib.import_module(name)
    from workers.warm import warm_up

    warm_up()
    import torch

    # What a child would not survive in the process that it is forked from: a GPU's driver.
    assert not torch.cuda.is_initialized()
    gc.collect()
    gc.freeze()  # a child's collector then leaves the shared pages alone
    adopt_orphans()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        channel.send(b"ready\n")
        ForkServer(channel).serve()


if __name__ == "__main__":
    main()
