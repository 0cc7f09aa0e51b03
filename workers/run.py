"""One job, from stage to stage.

Each stage does its work once: it leaves a mark (marks.py), and an attempt that finds a valid mark passes on.
Stages that need the network and the user's token (resolve, the header part of plan, fetch, publish) run here
in the worker; stages that read a source's weights (plan, convert, verify) run in the job's child process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from service.card import render_card
from service.disk import FULL, NoSpace, is_disk_full
from service.evidence_request import wants_data
from service.fetch import fetch
from service.headers import read_headers
from service.hub import LONG_S, HubUnavailable, patience
from service.jobs import Job, NotOurs, Stage, State
from service.lanes import Queue
from service.logs import job_in_logs
from service.manifest import build_manifest
from service.papers import PICTURE, no_fit, write_papers
from service.publish import is_folder, publish
from service.source import Source, resolve
from tricks import BadInput, Cancelled, Conversion, Plan, TricksmithError
from workers.environment import network_environment
from workers.forks import NoChild
from workers.gpus import NO_GPU
from workers.marks import Marks, remove
from workers.process import ChildProcess, Crashed, DiskFull
from workers.watch import Stop, Watch
from workers.wire import checkpoint_to_json
from workers.worker import Attempt, Worker
from workers.workspace import DATA, MARGIN, Workspace, used_bytes

if TYPE_CHECKING:  # evals brings torch; the worker itself needs it only to read evidence back
    from evals import Evidence

log = logging.getLogger(__name__)

T = TypeVar("T")

REPORT_EVERY = 0.1  # seconds between two progress events of one job
TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


class Rejected(TricksmithError):
    """The converted model is not its source; the message says in what."""


@dataclass(frozen=True)
class End:
    """How a job ended, as the store keeps it."""

    state: State
    reason: str | None = None
    cause: str | None = None
    verdict: str | None = None
    result: str | None = None


def run_job(attempt: Attempt, worker: Worker) -> Job | None:
    """Bring the job to an end, or back into the queue where the worker stops.

    Returns:
        The job as it then is; None where it is another worker's now, or Redis is gone for good.
    """
    job, settings = attempt.job, worker.settings
    watch = Watch(worker.store, job.id, attempt.owner, settings.lease, worker.stops, settings.time_limit)
    worker.runs(job.id, now=True)
    try:
        with job_in_logs(job.id), watch:
            log.info("attempt %d: %s, %s", job.attempts, job.model, ", ".join(job.tricks))
            Run(attempt, worker, watch).to_the_end()
            return worker.store.get(job.id)
    except NotOurs as error:
        log.warning("job %s: dropped: %s", job.id, error)
    except redis.RedisError as error:
        log.error("job %s: left to its lease, Redis does not answer: %s", job.id, type(error).__name__)
    finally:
        worker.runs(job.id, now=False)
    return None


class Run:
    """One attempt at one job."""

    def __init__(self, attempt: Attempt, worker: Worker, watch: Watch) -> None:
        self._job = attempt.job
        self._owner = attempt.owner
        self._worker = worker
        self._store = worker.store
        self._watch = watch
        self._vault = worker.vault
        self._stage = Stage.RESOLVE
        self._told = 0.0
        self._child: ChildProcess | None = None
        self._stack = ExitStack()

    def to_the_end(self) -> None:
        """Run all stages and write down how the job ended.

        Raises:
            NotOurs: another worker has the job now; nothing more was changed.
        """
        with Workspace(self._worker.settings.work, self._job.id) as space:
            self._space, self._folder = space, space.folder
            self._marks = Marks(self._folder)
            end = self._outcome()
            self._remove_partial()
            if end is None:
                self._patiently(lambda: self._store.give_back(self._job.id, self._owner))
                return
            self._patiently(lambda: self._store.finish(self._job.id, self._owner, **asdict(end)))
            self._patiently(lambda: self._vault.forget(self._job.id))
            # Told first, then cleaned: who dies between the two has left a folder, not a job.
            if end.state is not State.FAILED or end.cause == "disk":
                space.clear()  # a failed job keeps what it made, for its retry
        log.info("%s%s", end.state.value, f": {end.reason}" if end.reason else "")

    def _outcome(self) -> End | None:
        """How the job ends; None where it does not end here."""
        try:
            failing = self._worker.settings.hub_patience
            with self._stack, patience(LONG_S, failing=failing, stop=self._heed, tell=self._say):
                evidence, result = self._stages()
            return End(State.PUBLISHED, verdict=evidence.verdict.value, result=result)
        except Cancelled:
            match self._watch.stop:
                case Stop.CANCELLED:
                    return End(State.CANCELLED, reason="cancelled")
                case Stop.TIME:
                    hours = self._worker.settings.time_limit / 3600
                    reason = (
                        f"{self._stage.value} was not done after {hours:g} hours, the longest that a job may"
                        " take; retry, it goes on at this stage"
                    )
                    return End(State.FAILED, reason=reason, cause="time limit")
                case Stop.LOST:
                    raise NotOurs(f"job {self._job.id} is another worker's now") from None
                case _:
                    return None
        except Rejected as error:
            return End(State.REJECTED, reason=str(error), verdict="different")
        except (NotOurs, redis.RedisError):
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the job ends with a reason)
            return End(State.FAILED, reason=self._reason(error), cause=cause_of(error))

    def _stages(self) -> tuple[Evidence, str]:
        source = self._resolve()
        plan = self._plan(source)
        folder = self._fetch(source)
        conversion = self._convert(plan, source, folder)
        if conversion.settled is not None:
            plan = Plan.from_json(conversion.settled)
            self._lay_down("plan", json.dumps(conversion.settled))
        evidence = self._verify(plan, folder)
        return evidence, self._publish(source, plan, folder, conversion, evidence)

    def _heed(self) -> None:
        """A wait for a busy Hub ends where the job is to stop."""
        if self._stops():
            raise Cancelled("cancelled")

    # -- the stages --------------------------------------------------------------------------------

    def _resolve(self) -> Source:
        self._enter(Stage.RESOLVE)
        said = self._job.source or {}
        # A job that is retried long after its end has no list of files any more.
        promised = Source.from_json(said) if "files" in said else None
        mark = self._marks.get(Stage.RESOLVE)
        if mark is not None and (promised is None or promised.folder is None):
            return Source.from_json(mark)
        # Access, and a folder's files, may have changed since the job was submitted; the commit may not.
        source = resolve(promised.reference if promised else self._job.model, self._token())
        if promised is not None and promised.folder is not None and source.key != promised.key:
            raise BadInput(
                f"the files in {source.folder} changed after the job was submitted; submit it again"
            )
        if promised is not None and promised.commit == source.commit:
            source = promised  # it knows the revision that the user named
        if mark is None:
            self._marks.put(Stage.RESOLVE, source.to_json())
        self._space.reserve(self._needed(source), f"converting {source.model}", self._wait)
        return source

    def _needed(self, source: Source) -> int:
        """Bytes that this attempt will still write."""
        needed = 0 if self._marks.get(Stage.CONVERT) else source.size_bytes
        if self._worker.cache.keeps(source):
            return needed + self._worker.cache.missing(source)
        there = used_bytes(self._folder / "source")
        return needed + (0 if source.folder is not None else max(0, source.size_bytes - there))

    def _plan(self, source: Source) -> Plan:
        self._enter(Stage.PLAN)
        mark = self._marks.get(Stage.PLAN)
        if mark is None:
            headers = self._folder / "checkpoint.json"
            headers.write_text(json.dumps(checkpoint_to_json(read_headers(source, self._token()))))
            # What cannot be measured is said before the download.
            if self._job.evidence_asked is not None and not wants_data(self._job.evidence_asked):
                self._ask("check_evidence", evidence=self._job.evidence_asked)
            mark = self._ask("plan", checkpoint=str(headers), tricks=self._job.tricks)
            self._marks.put(Stage.PLAN, mark)
        plan = Plan.from_json(mark)
        self._lay_down("plan", json.dumps(mark))
        if not plan.fits:
            raise BadInput(no_fit(plan))
        return plan

    def _fetch(self, source: Source) -> Path:
        self._enter(Stage.FETCH)
        self._fetch_data()
        cache = self._worker.cache
        if cache.keeps(source):
            return self._stack.enter_context(cache.held(source, self._report, self._wait, self._token()))
        return fetch(source, self._folder / "source", self._token(), report=self._report)

    def _fetch_data(self) -> None:
        """Have what the evidence is measured on in the child's Hugging Face home.

        The child that reads weights has no network. This one has, but no token and no weights.
        """
        asked = self._job.evidence_asked
        if not wants_data(asked) or self._marks.get(Stage.FETCH) is not None:
            return
        worker = self._worker
        allowance = worker.allowance(0, NO_GPU | network_environment())
        settings, lock = worker.settings, self._space.lock
        with ChildProcess(
            worker.forks, self._folder, self._stops, settings.grace, allowance, lock, anew=True
        ) as child:
            child.ask("check_evidence", self._report, evidence=asked, most=self._space.left())
        self._marks.put(Stage.FETCH, {"data": DATA})

    def _convert(self, plan: Plan, source: Source, folder: Path) -> Conversion:
        self._enter(Stage.CONVERT)
        mark = self._marks.get(Stage.CONVERT)
        if mark is None or not self._is_whole(mark["files"]):
            self._marks.drop(Stage.CONVERT)
            remove(self._converted)
            mark = self._ask("convert", plan=plan.to_json(), source=str(folder), out=str(self._converted))
            self._marks.put(Stage.CONVERT, mark)
        return Conversion(
            mark["files"],
            mark["bytes_read"],
            mark["bytes_written"],
            mark.get("conditions", {}),
            mark.get("settled"),
        )

    def _verify(self, plan: Plan, folder: Path) -> Evidence:
        self._enter(Stage.VERIFY)
        mark = self._marks.get(Stage.VERIFY)
        if mark is None:
            mark = self._ask(
                "verify",
                source=str(folder),
                converted=str(self._converted),
                plan=plan.to_json(),
                evidence=self._job.evidence_asked,
                picture=str(self._folder / PICTURE),
                memory=self._worker.memory,
                cache=str(self._worker.settings.task_results),
            )
            self._marks.put(Stage.VERIFY, mark)
        from evals import Evidence

        evidence = Evidence.from_json(mark)
        self._lay_down("evidence", json.dumps(mark))
        if (drawn := self._picture()) is not None:
            self._lay_down("picture", base64.b64encode(drawn).decode())
        if not evidence.verdict.publishable:
            reasons = "; ".join(evidence.reasons) or "no reason given"
            raise Rejected(f"the converted model is not its source: {reasons}")
        return evidence

    def _publish(
        self, source: Source, plan: Plan, folder: Path, conversion: Conversion, evidence: Evidence
    ) -> str:
        self._enter(Stage.PUBLISH)
        self._stop_child()
        mark = self._marks.get(Stage.PUBLISH)
        if mark is not None:
            return str(mark["result"])
        self._check_ours()
        manifest = build_manifest(source, plan, conversion, folder)
        destination = None if is_folder(self._job.to) else self._job.to
        card = render_card(source, plan, evidence, manifest, destination)
        write_papers(
            self._converted,
            manifest=manifest,
            evidence=evidence.to_json(),
            card=card,
            picture=self._picture(),
        )
        self._lay_down("card", card)
        result = publish(
            self._converted,
            self._job.to,
            evidence=evidence,
            source=source,
            private=self._job.private,
            pr=self._job.pr,
            token=self._token(),
            report=self._report,
        )
        self._marks.put(Stage.PUBLISH, {"result": result})
        return result

    def _picture(self) -> bytes | None:
        """The picture that the child drew of the evidence, where there was something to draw."""
        file = self._folder / PICTURE
        return file.read_bytes() if file.is_file() else None

    def _token(self) -> str | None:
        """The job's user's token, opened at each use; None: the operator's."""
        return self._patiently(lambda: self._vault.token(self._job))

    # -- what stages share -------------------------------------------------------------------------

    @property
    def _converted(self) -> Path:
        return self._folder / "converted"

    def _enter(self, stage: Stage) -> None:
        self._wait()
        self._stage = stage
        self._told = 0.0
        self._patiently(lambda: self._store.stage(self._job.id, self._owner, stage))

    def _report(self, unit: str, done: int, total: int) -> None:
        self._wait()
        if self._stage is Stage.PUBLISH and done == total:
            self._check_ours()  # what comes next is seen by others
        now = time.monotonic()
        if now - self._told >= REPORT_EVERY or done == total:
            self._told = now
            with suppress(redis.RedisError):  # progress is not worth waiting for
                self._store.progress(self._job.id, self._owner, self._stage, unit, done, total)

    def _say(self, text: str) -> None:
        """A line for the log of the job, and for whoever looks at it."""
        log.warning("%s", text)
        with suppress(redis.RedisError):
            self._store.say(self._job.id, self._owner, self._stage, one_line(text))

    def _lay_down(self, name: str, text: str) -> None:
        self._patiently(lambda: self._store.lay_down(self._job.id, self._owner, name, text))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Ask the store for as long as Redis is away, unless the worker stops."""
        while True:
            try:
                return call()
            except redis.RedisError:
                if self._worker.stops.wait(1.0):
                    raise

    def _check_ours(self) -> None:
        """Go on only if Redis says now that the job is ours: this attempt may have slept past its lease."""
        if self._watch.check() is not None:
            raise Cancelled("cancelled")

    def _wait(self) -> None:
        if self._stops():
            raise Cancelled("cancelled")

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the job's child do something; it is started when first needed."""
        if self._child is None:
            self._child = self._stack.enter_context(self._start_child())
        return self._child.ask(do, self._report, **arguments)

    def _start_child(self) -> ChildProcess:
        gpu = NO_GPU
        if self._job.lane.startswith(Queue.GPU):
            gpu = self._stack.enter_context(self._worker.gpus.one(self._wait))
        # A converted file is as large as its source's, give or take a header.
        largest = 2 * self._job.size + MARGIN
        return ChildProcess(
            self._worker.forks,
            self._folder,
            self._stops,
            self._worker.settings.grace,
            self._worker.allowance(largest, gpu),
            self._space.lock,
        )

    def _stops(self) -> bool:
        return self._watch.stop is not None

    def _stop_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _is_whole(self, files: dict[str, str]) -> bool:
        """Whether the converted files are still what was written; read only when an attempt is resumed."""
        for name, digest in files.items():
            path = self._converted / name
            if not path.is_file():
                return False
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
        return True

    def _remove_partial(self) -> None:
        """A converted folder without its mark is half of something."""
        if self._marks.get(Stage.CONVERT) is None:
            remove(self._converted)

    def _reason(self, error: Exception) -> str:
        """Why the job failed: one line for the user; the worker's log has the rest."""
        if isinstance(error, DiskFull) or is_disk_full(error):
            return FULL
        if isinstance(error, TricksmithError):
            return one_line(str(error))
        log.error("failed in %s", self._stage.value, exc_info=error)
        return one_line(f"{self._stage.value} failed: {type(error).__name__}: {error}")


def cause_of(error: Exception) -> str:
    """What kind of thing went wrong, in a word or two: what failures are counted by."""
    if isinstance(error, DiskFull | NoSpace) or is_disk_full(error):
        return "disk"
    if isinstance(error, Crashed):
        return error.cause
    if isinstance(error, HubUnavailable):
        return "hub"
    if isinstance(error, NoChild):
        return "crash"
    return "request" if isinstance(error, BadInput) else "unforeseen"


def one_line(text: str) -> str:
    """The first line, with anything that looks like a token blotted out."""
    lines = text.strip().splitlines() or ["no reason given"]
    return TOKEN.sub("hf_***", lines[0])[:500]
