"""The child process of one job: everything that reads a source's weights happens here.

Forked from the fork server (forkserver.py), with no token in its environment and no network use intended. It
does what its standard input asks (see wire.py), one request at a time, and ends when that input ends: so it
never outlives its worker, however the worker died.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from service.disk import is_disk_full
from service.evidence_request import memory_of, recipe_of
from tricks import Cancelled, Plan, TricksmithError, convert, make_plan, parse_trick, stated_budget
from workers.trees import end_descendants
from workers.wire import Error, checkpoint_from_json

REPORT_EVERY = 0.1  # seconds


class Child:
    """Reads requests, does them, answers."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._answers = answers
        self._cancelled = threading.Event()
        self._todo: queue.Queue[dict[str, Any]] = queue.Queue()
        self._told = 0.0
        threading.Thread(target=self._read, args=[requests], daemon=True).start()

    def serve(self) -> None:
        """Do one request after the other; the reading thread ends the process."""
        while True:
            request = self._todo.get()
            self._answer(self._outcome(request))

    def _read(self, requests: IO[str]) -> None:
        for line in requests:
            request = json.loads(line)
            if request["do"] == "cancel":
                self._cancelled.set()
            else:
                self._todo.put(request)
        # No clean-up: the worker is gone or done with us, and work in hand must not be finished.
        end_descendants(os.getpid())
        os._exit(0)

    def _answer(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def report(self, unit: str, done: int, total: int) -> None:
        """Tell the worker how far the work is, at most ten times a second.

        Raises:
            Cancelled: the worker asked to stop.
        """
        if self._cancelled.is_set():
            raise Cancelled("cancelled")
        now = time.monotonic()
        if now - self._told >= REPORT_EVERY or done == total:
            self._told = now
            self._answer({"report": [unit, done, total]})

    def _write(self, request: dict[str, Any]) -> dict[str, Any]:
        from evals.writing import write_both

        def tell(told: dict[str, Any]) -> None:
            if self._cancelled.is_set():
                raise Cancelled("cancelled")
            self._answer({"tell": told})

        paths = Path(request["source"]), Path(request["converted"])
        write_both(*paths, request["prompt"], request["new"], tell)
        return {}

    def _outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["do"] == "write":
                return {"done": self._write(request)}
            return {"done": DEEDS[request["do"]](request, self.report)}
        except Cancelled:
            return {"error": Error.CANCELLED, "text": "cancelled"}
        except TricksmithError as error:
            return {"error": _said(error), "text": _line(error)}
        except Exception as error:  # noqa: BLE001 (whatever it is ends this job alone, with a reason)
            traceback.print_exc()
            return {"error": kind_of(error), "text": f"{type(error).__name__}: {_line(error)}"}


def _plan(request: dict[str, Any], report: Callable[[str, int, int], None]) -> dict[str, Any]:
    checkpoint = checkpoint_from_json(json.loads(Path(request["checkpoint"]).read_text()))
    return make_plan(checkpoint, [parse_trick(text) for text in request["tricks"]], report).to_json()


def _convert(request: dict[str, Any], report: Callable[[str, int, int], None]) -> dict[str, Any]:
    done = convert(Plan.from_json(request["plan"]), Path(request["source"]), Path(request["out"]), report)
    return asdict(done)


def _verify(request: dict[str, Any], report: Callable[[str, int, int], None]) -> dict[str, Any]:
    from evals import compare, picture  # late: planning needs no evals

    source, converted = Path(request["source"]), Path(request["converted"])
    plan, asked = Plan.from_json(request["plan"]), request["evidence"]
    evidence = compare(
        source,
        converted,
        recipe=recipe_of(asked),
        lossless=plan.lossless,
        budget=None if plan.lossless else stated_budget(plan.tricks),
        tricks=[str(trick) for trick in plan.tricks],
        plan=plan,
        memory=memory_of(asked).within(int(request["memory"])),
        cache=Path(request["cache"]),
        report=report,
    )
    if (drawn := picture(evidence)) is not None:
        Path(request["picture"]).write_bytes(drawn)
    return evidence.to_json()


def _check_evidence(request: dict[str, Any], report: Callable[[str, int, int], None]) -> dict[str, Any]:
    """See that texts and tasks are within reach; where this process may use the network, fetch them."""
    from evals import check_recipe

    check_recipe(recipe_of(request["evidence"]), report, request.get("most"))
    return {}


DEEDS: dict[str, Callable[[dict[str, Any], Callable[[str, int, int], None]], dict[str, Any]]] = {
    "plan": _plan,
    "convert": _convert,
    "check_evidence": _check_evidence,
    "verify": _verify,
}


def _said(error: TricksmithError) -> Error:
    """Which of the things that a request meets a foreseen error is."""
    from evals import HubAway

    if is_disk_full(error):
        return Error.DISK_FULL
    return Error.HUB if isinstance(error, HubAway) else Error.BAD_INPUT


def _line(error: BaseException) -> str:
    """The error's first line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def kind_of(error: BaseException) -> Error:
    """Which of the things that go wrong with a machine, not with a request, an unforeseen error is."""
    text, name = str(error), type(error).__name__
    if is_disk_full(error) or (isinstance(error, OSError) and error.errno == errno.EFBIG):
        return Error.DISK_FULL
    if "CUDA" in text or name == "AcceleratorError":
        return Error.GPU_MEMORY if "out of memory" in text else Error.GPU
    # torch says it in words alone, without a type of its own.
    if isinstance(error, MemoryError) or "allocate memory" in text or "alloc_cpu.cpp" in text:
        return Error.MEMORY
    return Error.UNEXPECTED


def main(threads: int) -> None:
    """Serve standard input; whatever libraries print goes to standard error."""
    import torch

    torch.set_num_threads(threads)
    # A file that grows beyond its limit is an error with a reason, not a death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Child(os.fdopen(os.dup(0)), answers).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
