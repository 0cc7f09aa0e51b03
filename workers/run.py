"""One job, from stage to stage.

Each stage does its work once: it leaves a mark (marks.py), and an attempt that finds a valid mark passes on.
Stages that need the network and the user's token (resolve, the header part of plan, fetch, publish) run here
in the worker; stages that read a source's weights (plan, convert, verify) run in the job's child process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.card import render_card
from service.disk import FULL, is_disk_full
from service.fetch import check_space, fetch
from service.headers import read_headers
from service.jobs import Job, JobStore, NotOurs, Stage, State
from service.manifest import build_manifest
from service.papers import no_fit, write_papers
from service.publish import is_folder, publish
from service.settings import Settings
from service.source import Source, resolve
from service.tokens import Vault
from tricks import BadInput, Cancelled, Conversion, Plan, TricksmithError
from workers.marks import Marks, remove
from workers.process import ChildProcess, DiskFull
from workers.watch import Stop, Watch
from workers.wire import checkpoint_to_json

if TYPE_CHECKING:  # evals brings torch; the worker itself needs it only to read evidence back
    from evals import Evidence

log = logging.getLogger(__name__)

REPORT_EVERY = 0.1  # seconds between two progress events of one job
TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


class Rejected(TricksmithError):
    """The converted model is not its source; the message says in what."""


def run_job(job_id: str, store: JobStore, settings: Settings, worker_stops: threading.Event) -> Job | None:
    """Take the job and bring it to an end, or back into the queue where the worker stops.

    Returns:
        The job as it then is; None where it was not ours to run.
    """
    owner = secrets.token_hex(8)
    try:
        job = store.begin(job_id, owner, settings.lease)
    except (NotOurs, BadInput) as error:
        log.info("job %s: not run: %s", job_id, error)
        return None
    log.info("job %s: attempt %d", job_id, job.attempts)
    with Watch(store, job_id, owner, settings.lease, worker_stops) as watch:
        run = Run(job, owner, store, settings, watch)
        try:
            run.to_the_end()
        except NotOurs as error:
            log.warning("job %s: dropped: %s", job_id, error)
            return None
    return store.get(job_id)


class Run:
    """One attempt at one job."""

    def __init__(self, job: Job, owner: str, store: JobStore, settings: Settings, watch: Watch) -> None:
        self._job = job
        self._owner = owner
        self._store = store
        self._watch = watch
        self._vault = Vault(store.url, settings)
        self._grace = settings.grace
        self._jobs = settings.concurrency
        self._folder = settings.work / job.id
        self._stage = Stage.RESOLVE
        self._told = 0.0
        self._child: ChildProcess | None = None
        self._stack = ExitStack()

    def to_the_end(self) -> None:
        """Run all stages and write down how the job ended.

        Raises:
            NotOurs: another worker has the job now; nothing more was changed.
        """
        state, reason, verdict, result = State.FAILED, None, None, None
        try:
            with self._stack:
                evidence, result = self._stages()
            state, verdict = State.PUBLISHED, evidence.verdict.value
        except Cancelled:
            if self._watch.stop is not Stop.CANCELLED:
                self._remove_partial()
                if self._watch.stop is Stop.LOST:
                    raise NotOurs(f"job {self._job.id} is another worker's now") from None
                self._store.give_back(self._job.id, self._owner)
                return
            state, reason = State.CANCELLED, "cancelled"
        except Rejected as error:
            state, reason, verdict = State.REJECTED, str(error), "different"
        except NotOurs:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the job ends with a reason)
            reason = self._reason(error)
        self._remove_partial()
        if state is not State.FAILED or reason == FULL:
            remove(self._folder)  # a failed job keeps what it fetched, for its retry
        self._store.finish(self._job.id, self._owner, state, reason=reason, verdict=verdict, result=result)
        self._vault.forget(self._job.id)
        self._vault.close()
        log.info("job %s: %s%s", self._job.id, state.value, f": {reason}" if reason else "")

    def _stages(self) -> tuple[Evidence, str]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._marks = Marks(self._folder)
        source = self._resolve()
        plan = self._plan(source)
        folder = self._fetch(source)
        conversion = self._convert(plan, source, folder)
        evidence = self._verify(plan, folder)
        return evidence, self._publish(source, plan, folder, conversion, evidence)

    # -- the stages --------------------------------------------------------------------------------

    def _resolve(self) -> Source:
        self._enter(Stage.RESOLVE)
        promised = Source.from_json(self._job.source) if self._job.source else None
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
        copies = 1 if source.folder is not None else 2  # the converted model, and the fetched one
        if self._marks.get(Stage.CONVERT) is None:
            check_space(self._folder, copies * source.size_bytes, f"converting {source.model}")
        return source

    def _plan(self, source: Source) -> Plan:
        self._enter(Stage.PLAN)
        mark = self._marks.get(Stage.PLAN)
        if mark is None:
            headers = self._folder / "checkpoint.json"
            headers.write_text(json.dumps(checkpoint_to_json(read_headers(source, self._token()))))
            mark = self._ask("plan", checkpoint=str(headers), tricks=self._job.tricks)
            self._marks.put(Stage.PLAN, mark)
        plan = Plan.from_json(mark)
        self._store.lay_down(self._job.id, "plan", json.dumps(mark))
        if not plan.fits:
            raise BadInput(no_fit(plan))
        return plan

    def _fetch(self, source: Source) -> Path:
        self._enter(Stage.FETCH)
        mark = self._marks.get(Stage.FETCH)
        if mark is None or not all(
            (Path(mark["folder"]) / file.name).is_file()
            and (Path(mark["folder"]) / file.name).stat().st_size == file.size
            for file in source.files
        ):
            folder = fetch(source, self._folder / "source", self._token(), report=self._report)
            mark = {"folder": str(folder)}
            self._marks.put(Stage.FETCH, mark)
        return Path(mark["folder"])

    def _convert(self, plan: Plan, source: Source, folder: Path) -> Conversion:
        self._enter(Stage.CONVERT)
        mark = self._marks.get(Stage.CONVERT)
        if mark is None or not self._is_whole(mark["files"]):
            self._marks.drop(Stage.CONVERT)
            remove(self._converted)
            mark = self._ask("convert", plan=plan.to_json(), source=str(folder), out=str(self._converted))
            self._marks.put(Stage.CONVERT, mark)
        return Conversion(mark["files"], mark["bytes_read"], mark["bytes_written"])

    def _verify(self, plan: Plan, folder: Path) -> Evidence:
        self._enter(Stage.VERIFY)
        mark = self._marks.get(Stage.VERIFY)
        if mark is None:
            mark = self._ask(
                "verify", source=str(folder), converted=str(self._converted), lossless=plan.lossless
            )
            self._marks.put(Stage.VERIFY, mark)
        from evals import Evidence

        evidence = Evidence.from_json(mark)
        self._store.lay_down(self._job.id, "evidence", json.dumps(mark))
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
        manifest = build_manifest(source, plan, conversion, folder)
        destination = None if is_folder(self._job.to) else self._job.to
        card = render_card(source, plan, evidence, manifest, destination)
        write_papers(self._converted, manifest=manifest, evidence=evidence.to_json(), card=card)
        self._store.lay_down(self._job.id, "card", card)
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

    def _token(self) -> str | None:
        """The job's user's token, opened at each use; None: the operator's."""
        return self._vault.token(self._job)

    # -- what stages share -------------------------------------------------------------------------

    @property
    def _converted(self) -> Path:
        return self._folder / "converted"

    def _enter(self, stage: Stage) -> None:
        if self._stops():
            raise Cancelled("cancelled")
        self._stage = stage
        self._told = 0.0
        self._store.stage(self._job.id, self._owner, stage)

    def _report(self, unit: str, done: int, total: int) -> None:
        if self._stops():
            raise Cancelled("cancelled")
        now = time.monotonic()
        if now - self._told >= REPORT_EVERY or done == total:
            self._told = now
            self._store.progress(self._job.id, self._owner, self._stage, unit, done, total)

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the job's child do something; it is started when first needed."""
        if self._child is None:
            child = ChildProcess(self._folder, self._stops, self._grace, self._jobs)
            self._child = self._stack.enter_context(child)
        return self._child.ask(do, self._report, **arguments)

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
        if (self._folder / "marks").is_dir() and Marks(self._folder).get(Stage.CONVERT) is None:
            remove(self._converted)

    def _reason(self, error: Exception) -> str:
        """Why the job failed: one line for the user; the worker's log has the rest."""
        if isinstance(error, DiskFull) or is_disk_full(error):
            return FULL
        if isinstance(error, TricksmithError):
            return one_line(str(error))
        log.error("job %s: failed in %s", self._job.id, self._stage.value, exc_info=error)
        return one_line(f"{self._stage.value} failed: {type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """The first line, with anything that looks like a token blotted out."""
    lines = text.strip().splitlines() or ["no reason given"]
    return TOKEN.sub("hf_***", lines[0])[:500]
