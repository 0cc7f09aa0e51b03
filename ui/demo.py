"""`make demo`: the main job on embedded defaults. A small trained model goes through the real queue.

Redis (its append-only file on) and a worker are started for this command; the job is submitted by
`Service.submit`, as the web form does. Run it again and it converts again: its former result
is removed first.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from service.jobs import Job, State
from tricks import BadInput
from ui.cli import BAD, DONE, NO, guarded
from ui.follow import follow
from ui.progress import Progress
from ui.stack import processes, queue_service
from ui.text import duration, evidence_text

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-llama"
OUT = ROOT / "out" / "tiny-llama-flashnorm"
DATA = ROOT / "data" / "demo"


def demo(model: Path = MODEL, out: Path = OUT, data: Path = DATA) -> int:
    """Convert, verify and publish `model` into the folder `out`; returns the exit code."""
    os.environ.setdefault("TRICKSMITH_DATA", str(data))
    print(f"Tricksmith demo: {model.name}, trick flashnorm, published to {_near(out)}\n")
    _make_room(out)
    with queue_service() as (service, settings), processes(settings):
        job = service.submit(str(model), ["flashnorm"], str(out))
        print(f"Job {job.id} is in the queue (Redis and the worker's log: {_near(settings.data)})\n")
        job = follow(service, job.id, Progress(sys.stdout))
        evidence = service.evidence(job.id)
    if evidence is not None:
        print(f"\n{evidence_text(evidence)}")
    return _end(job, out)


def _end(job: Job, out: Path) -> int:
    took = duration((job.finished or 0) - (job.started or 0))
    if job.state is not State.PUBLISHED:
        print(f"\nThe job is {job.state} after {took}: {job.reason}", file=sys.stderr)
        return NO if job.state is State.REJECTED else BAD
    print(f"\nPublished in {took}: {_near(out)}")
    print(f"Its card, with the proof: {_near(out / 'README.md')}")
    print("The same in a browser: tricksmith serve")
    print("With a Hub model: tricksmith submit ORG/MODEL --trick flashnorm --to YOU/NAME --wait")
    return DONE


def _make_room(out: Path) -> None:
    """Remove what a former demo published, and nothing else.

    Raises:
        BadInput: the folder holds something that the demo did not make.
    """
    if not out.exists():
        return
    try:
        json.loads((out / "conversion.json").read_text())
    except (OSError, ValueError):
        raise BadInput(f"{out} exists and is not the demo's; move it away and run the demo again") from None
    print("Removing what the last demo published, to make it anew.")
    shutil.rmtree(out)


def _near(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    try:
        return f"./{path.relative_to(Path.cwd())}"
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(guarded(demo))
