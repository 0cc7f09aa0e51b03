"""What open pages ask for again and again, told once: one reader per job, however many pages show it.

A page asks a plain address (`live/job?id=...&seen=...`) every `LOOK_MS` and gets the pieces of HTML that
changed, or nothing. That holds through a lost connection and a restart of this process: there is no stream
to break, and the state is in Redis. Two readers of one job never read Redis twice within `FRESH_S`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from service.api import Service
from service.events import Event
from service.jobs import Job, Stage, State
from tricks import TricksmithError
from ui.pages import parts, sides
from ui.pages.card import as_html
from ui.pages.escape import clock, esc
from ui.pages.visitor import Visitor
from ui.rates import WINDOW_S, per_second

FRESH_S = 0.25
STALE_S = 0.5
"""A job is shown as it was this long ago at most, where it is being read anew."""
LOOK_MS = 800
"""How soon a job's page asks again."""
COMPARED_MS = 400
"""How soon a page that shows two models writing asks again."""
_FORGET_S = 120.0
_LOGGED = 200  # lines


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment: the answer's bytes, and its version."""

    version: str
    body: bytes


@dataclass
class _Reader:
    """Follows one job's events."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: float = 0.0
    read: float = 0.0
    after: str = "0"
    log: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_LOGGED))
    began: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=400))
    job: Job | None = None
    snapshot: Snapshot | None = None
    mine: Snapshot | None = None
    papers_version: str = ""
    papers: tuple[str, Snapshot] | None = None

    def seen_by(self, asker: Visitor) -> Snapshot:
        """What is told to this visitor.

        Raises:
            BadInput: the job does not exist for them.
        """
        assert self.job is not None
        assert self.snapshot is not None
        assert self.mine is not None
        asker.check_sees(self.job)
        return self.mine if asker.owns(self.job) else self.snapshot

    def take(self, event: Event) -> None:
        self.after = event.id
        if event.kind == "progress":
            self.recent.append(event)
            while self.recent and event.at - self.recent[0].at > WINDOW_S:
                self.recent.popleft()
            return
        if event.kind in ("stage", "state"):
            for stage in [name for name in self.began if name not in self.took]:
                self.took[stage] = event.at - self.began[stage]
        if event.kind == "stage" and event.stage:
            self.began[event.stage] = event.at
            self.took.pop(event.stage, None)
            said = f"{event.stage}: {parts.STAGES.get(Stage(event.stage), '')}"
            self.log.append((event.at, f"{said}; {event.text}" if event.text else said))
        elif event.kind == "state":
            self.log.append((event.at, f"{event.state}{': ' + event.text if event.text else ''}"))
        elif event.kind == "note" and event.text:
            self.log.append((event.at, f"{event.stage}: {event.text}"))


class Live:
    """The readers of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._readers: dict[str, _Reader] = {}
        self._queue: tuple[float, list[Job]] = (0.0, [])
        self._queue_lock = threading.Lock()

    def known(self, job_id: str, asker: Visitor) -> Snapshot | None:
        """The job as somebody just read it, or as it is while somebody reads it; None where nobody did.

        It never waits: with many pages open on one job, this is the answer to nearly all of them.

        Raises:
            BadInput: there is no such job for this visitor.
        """
        reader = self._readers.get(job_id)
        if reader is None or reader.snapshot is None or reader.job is None:
            return None
        age = time.monotonic() - reader.read
        if age > (STALE_S if reader.lock.locked() else FRESH_S):
            return None
        reader.asked = time.monotonic()
        return reader.seen_by(asker)

    def job(self, job_id: str, asker: Visitor) -> Snapshot:
        """The job as it is now, or was less than `FRESH_S` ago.

        Raises:
            BadInput: there is no such job for this visitor.
        """
        reader = self._fresh(job_id, asker)
        with reader.lock:
            return reader.seen_by(asker)

    def papers(self, job_id: str, asker: Visitor) -> Snapshot:
        """Plan, evidence picture and card of a job, as far as it has them.

        Raises:
            BadInput: there is no such job for this visitor.
        """
        reader = self._fresh(job_id, asker)
        with reader.lock:
            reader.seen_by(asker)
            if reader.papers is None or reader.papers[0] != reader.papers_version:
                assert reader.job is not None
                reader.papers = (reader.papers_version, self._read_papers(reader.job))
            return reader.papers[1]

    def picture(self, job_id: str, asker: Visitor) -> bytes | None:
        """The evidence drawn, a PNG.

        Raises:
            BadInput: there is no such job for this visitor.
        """
        return self._service.picture(job_id, viewer=asker.viewer)

    def _fresh(self, job_id: str, asker: Visitor) -> _Reader:
        now = time.monotonic()
        with self._lock:
            for stale in [key for key, r in self._readers.items() if now - r.asked > _FORGET_S]:
                del self._readers[stale]
            reader = self._readers.get(job_id)
        if reader is None:
            self._service.job(job_id, viewer=asker.viewer)
            with self._lock:
                reader = self._readers.setdefault(job_id, _Reader(asked=now))
        with reader.lock:
            reader.asked = now
            if reader.snapshot is None or time.monotonic() - reader.read > FRESH_S:
                self._read(job_id, reader)
        return reader

    def _read(self, job_id: str, reader: _Reader) -> None:
        job = self._service.job(job_id)
        for event in self._service.events(job_id, after=reader.after):
            reader.take(event)
        reader.read = time.monotonic()
        if job == reader.job and job.state.final and reader.snapshot is not None:
            return
        reader.job = job
        evidence = self._service.evidence(job_id) if _may_have_evidence(job) else None
        running = job.state is State.RUNNING and job.progress
        speed = per_second(list(reader.recent)) if running else None
        # The card is written before anything is published, and shown from then on.
        card = job.stage is Stage.PUBLISH and self._service.card(job_id) is not None
        reader.papers_version = _digest([job.state, job.stage, job.attempts, evidence is not None, card])
        told = {
            "head": parts.job_head(job),
            "stages": parts.stages(job, speed, reader.took),
            "outcome": parts.outcome(job, evidence),
            "log": _log(reader.log),
            "said": esc(f"{job.state}{', ' + job.stage if job.state is State.RUNNING and job.stage else ''}"),
            "papers": reader.papers_version,
            "final": job.state.final,
            "every": LOOK_MS,
            "where": self._where(job),
        }
        reader.snapshot = _snapshot({**told, "can": ""})
        reader.mine = _snapshot({**told, "can": _can(job)})

    def _read_papers(self, job: Job) -> Snapshot:
        plan, card = self._service.job_plan(job.id), self._service.card(job.id)
        picture = self._service.picture(job.id)
        coming = "" if job.state.final else parts.hint("The plan, the evidence and the card come here.")
        return _snapshot(
            {
                "plan": parts.plan_view(plan) if plan is not None else coming,
                "picture": _figure(job.id, picture) if picture else "",
                "card": as_html(card) if card else "",
            }
        )

    def _where(self, job: Job) -> str:
        if job.state is State.QUEUED:
            return self.place(job)
        return "Stopping …" if job.cancel and not job.state.final else ""

    def place(self, job: Job) -> str:
        """Where a queued job stands, in words."""
        ahead, _ = self._service.place(job.id)
        return parts.standing(ahead, expected(ahead, self.latest()))

    def latest(self) -> list[Job]:
        """The latest jobs of everybody, newest first; for the eyes of `queue` and `place` alone."""
        with self._queue_lock:
            at, jobs = self._queue
            if time.monotonic() - at > FRESH_S:
                jobs = self._service.jobs(limit=200)
                self._queue = (time.monotonic(), jobs)
            return jobs

    def comparison(self, comparison_id: str, asker: Visitor) -> Snapshot:
        """A comparison as far as it has come.

        Raises:
            BadInput: there is no such comparison for this visitor.
        """
        if not comparison_id:
            return _snapshot({"sides": "", "final": True})
        asked, answer = self._service.comparison(comparison_id, viewer=asker.viewer)
        html = sides.view(self._service.job(asked.job), asked, answer)
        return _snapshot({"sides": html, "final": answer.final, "every": COMPARED_MS})

    def queue(self, asker: Visitor) -> Snapshot:
        """The queue as this visitor may see it."""
        jobs = self.latest()
        html = parts.jobs_table([job for job in jobs if asker.sees(job)], jobs)
        return _snapshot({"jobs": html, "final": False})


def expected(ahead: int, jobs: list[Job]) -> float | None:
    """About how long (seconds) a job waits behind `ahead` others, as long as the latest ones took."""
    took = sorted(
        job.finished - job.started
        for job in jobs
        if job.state in (State.PUBLISHED, State.REJECTED) and job.started and job.finished
    )
    if not took:
        return None
    running = sum(job.state is State.RUNNING for job in jobs)
    return took[len(took) // 2] * (ahead + (running > 0)) / max(1, running)


def refused(error: TricksmithError) -> Snapshot:
    """What a page shows in place of a job that is not there for its visitor."""
    gone = parts.problem(str(error))
    pieces = ("stages", "outcome", "log", "said", "where", "can", "plan", "picture", "card")
    return _snapshot({**dict.fromkeys(pieces, ""), "head": gone, "sides": gone, "final": True})


def _snapshot(told: dict[str, Any]) -> Snapshot:
    version = _digest(told)
    return Snapshot(version, json.dumps({"version": version, **told}).encode())


def _can(job: Job) -> str:
    """What its owner may do to a job: the button that their page shows."""
    if not job.state.final:
        return "" if job.cancel else "cancel"
    return "retry" if job.state in (State.FAILED, State.CANCELLED) else ""


def _figure(job_id: str, png: bytes) -> str:
    """The picture's place on the page, of its size from the start: a PNG begins with it."""
    width, height = struct.unpack(">II", png[16:24])
    return (
        f'<figure class="ts-figure"><img src="live/picture?id={esc(job_id)}" width="{width}"'
        f' height="{height}" alt="The evidence drawn; the card has its figures"></figure>'
    )


def _may_have_evidence(job: Job) -> bool:
    return job.state.final or job.stage in (Stage.VERIFY, Stage.PUBLISH)


def _log(lines: deque[tuple[float, str]]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{clock(at)} {esc(text)}</li>" for at, text in lines)
    # The role stands around the list: on the list itself it would take away what its items are.
    return (
        f'<div class="ts-log" tabindex="0" role="log" aria-label="Log" aria-live="off"><ol>{items}</ol></div>'
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
