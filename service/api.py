"""What the faces ask for: plan, convert and verify here and now, or submit a job and follow it.

`plan`, `convert` and `verify` run in this process and need no Redis; the others start the embedded Redis,
or find a running one, at the first call.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from service.card import render_card
from service.comparing import TIME_LIMIT_S, Answer, Comparison, Comparisons, check, check_job
from service.disk import disk_errors
from service.events import Event
from service.evidence_request import EvidenceRequest, is_default, seconds_for
from service.explore import Explored, explore
from service.fetch import check_space, fetch
from service.headers import read_headers
from service.health import Health
from service.inspection import Inspection, inspect
from service.jobs import Job, JobStore, new_id, no_job, request_key
from service.lanes import Queue, lane
from service.manifest import build_manifest, file_digests, read_manifest
from service.naming import converted_name
from service.papers import no_fit, write_papers
from service.preflight import Preflight, preflight
from service.publish import check_destination, check_visibility
from service.queue import make_app, send, send_comparison, send_look
from service.redis_server import running_redis
from service.registry import About, Registry
from service.reproduction import Reproduction, reproduce
from service.rights import namespaces
from service.search import Found, search
from service.settings import Settings
from service.source import Source, resolve
from service.tokens import Grant, Vault, check_grant
from service.watch_store import WatchStore
from service.watching import Watching
from service.webhook import Receiver
from tricks import (
    TRICKS,
    BadInput,
    Conversion,
    Plan,
    Report,
    Trick,
    parse_trick,
    silent,
    stated_budget,
)

if TYPE_CHECKING:  # evals brings torch, which a list of jobs does not need
    from celery import Celery

    from evals import Evidence, MemoryLimit, Recipe

log = logging.getLogger(__name__)


class Service:
    """The whole service as seen from a face; a context manager, safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._connected: tuple[JobStore, Celery] | None = None
        self._watch_store: WatchStore
        self._vault: Vault
        self._comparisons: Comparisons
        self._workers: Registry | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave Redis; an embedded one stops when nobody else uses it."""
        with self._lock:
            self._connected = None
            self._stack.close()

    # -- here and now ------------------------------------------------------------------------------

    def plan(self, model: str, tricks: Sequence[str] = ()) -> Plan:
        """Plan `tricks` for a folder or Hub model; where none is given, look at every known one by itself.

        Raises:
            BadInput: no such model, trick or option, or a model that cannot be planned.
        """
        from tricks import make_plan, overview  # late, here and below: they bring torch

        recipe = _recipe(tricks or list(TRICKS))
        checkpoint = read_headers(resolve(model))
        return make_plan(checkpoint, recipe) if tricks else overview(checkpoint, recipe)

    def convert(
        self, model: str, out: Path, tricks: Sequence[str], report: Report = silent
    ) -> tuple[Plan, Conversion]:
        """Convert into the new folder `out`, with a card that says UNVERIFIED.

        `out` appears whole, card and manifest included, or not at all.

        Raises:
            BadInput: as `plan`; or `out` exists, a trick fits nowhere, or the disk is full.
        """
        from tricks import convert, make_plan

        recipe = _recipe(tricks)
        out = out.expanduser().absolute()
        if out.exists() or out.is_symlink():
            raise BadInput(f"{out} exists; name a folder that does not")
        if not out.parent.is_dir():
            raise BadInput(f"{out.parent} is no folder; make it first, or name another place")
        source = resolve(model)
        plan = make_plan(read_headers(source), recipe)
        if not plan.fits:
            raise BadInput(no_fit(plan))
        if source.folder is not None and out.is_relative_to(source.folder):
            raise BadInput(f"{out} lies inside the source; name a folder outside of {source.folder}")
        check_space(out.parent, source.size_bytes * (1 if source.folder else 2), f"converting {source.model}")
        # Beside `out`, so that the last step is a rename within one file system.
        with disk_errors(), TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial-") as partial:
            folder = fetch(source, Path(partial) / "source", report=report)
            fresh = Path(partial) / "converted"
            conversion = convert(plan, folder, fresh, report)
            plan = plan if conversion.settled is None else Plan.from_json(conversion.settled)
            manifest = build_manifest(source, plan, conversion, folder)
            write_papers(fresh, manifest=manifest, card=render_card(source, plan, None, manifest))
            fresh.rename(out)
        return plan, conversion

    def verify(
        self,
        source: str,
        converted: str,
        tasks: Sequence[str] = (),
        report: Report = silent,
        *,
        recipe: Recipe | None = None,
        budget: Mapping[str, float] | None = None,
        device: str | None = None,
        memory: MemoryLimit | None = None,
        begin: Callable[[float], None] | None = None,
    ) -> Evidence:
        """Measure `converted` against `source`; each is a folder or a Hub model.

        Where `converted` is a folder that Tricksmith made from these very files of `source`, the evidence is
        laid down in it and its card is written anew. The source's task results are kept in the data folder.

        Args:
            recipe: how much is measured; by default `quick`, with `tasks` where some are given.
            budget: hold it to this as an approximate conversion (see `evals.compare`); by default to what
                the recipe states of one that Tricksmith made.
            begin: told how many seconds it will take, about, before it starts.

        Raises:
            BadInput: one of the two cannot be read, or a task is unknown.
        """
        from evals import RECIPES, compare, estimate_seconds, picture
        from tricks import make_plan

        recipe = recipe or RECIPES["quick"]

        ours, theirs = resolve(converted), resolve(source)
        manifest = None if ours.folder is None else read_manifest(Path(ours.folder))
        with TemporaryDirectory(prefix="tricksmith-") as scratch, disk_errors():
            folder = fetch(theirs, Path(scratch) / "source", report=report)
            made = fetch(ours, Path(scratch) / "converted", report=report)
            lossy = manifest is not None and manifest.get("lossless") is False
            if manifest is not None and lossy and budget is None:
                budget = stated_budget(_recipe(manifest["recipe"]))
            if begin is not None:
                begin(estimate_seconds(folder, recipe, tasks, device))
            evidence = compare(
                folder,
                made,
                recipe=recipe,
                lossless=budget is None and not lossy,
                budget=budget,
                tasks=tasks,
                device=device,
                memory=memory,
                cache=self.settings.task_results,
                report=report,
            )
            if ours.folder is not None and manifest is not None and _is_source_of(folder, manifest):
                made_from = _as_converted(theirs, manifest)
                plan = make_plan(read_headers(theirs), _recipe(manifest["recipe"]))
                card = render_card(made_from, plan, evidence, manifest)
                drawn = picture(evidence)
                write_papers(Path(ours.folder), card=card, evidence=evidence.to_json(), picture=drawn)
        return evidence

    def inspect(self, where: str) -> Inspection:
        """What was done to the converted model at `where`: a folder or a Hub id.

        Raises:
            BadInput: Tricksmith did not make it.
        """
        return inspect(where)

    def reproduce(self, where: str, source: str | None = None, report: Report = silent) -> Reproduction:
        """Convert again what is at `where`, and compare bit for bit.

        Raises:
            BadInput: as `inspect`; or its source is gone or changed.
        """
        return reproduce(inspect(where), source, report=report)

    # -- jobs --------------------------------------------------------------------------------------

    def preflight(self, model: str, tricks: Sequence[str] = (), token: str | bool | None = None) -> Preflight:
        """What can be known of a conversion before any weight is downloaded, its plan included.

        Here and in `explore`, `token` is the visitor's; False asks the Hub as nobody, None as the operator.

        Raises:
            BadInput: as `plan`.
        """
        return preflight(model, _recipe(tricks) if tricks else (), self.settings, token)

    def explore(
        self, model: str, token: str | bool | None = None, tricks: Sequence[str] = tuple(TRICKS)
    ) -> Explored:
        """A model's figures and each of `tricks` (as in a recipe) looked at on its own, nothing proven yet.

        `service.explore.QUICK` are those that are looked at in a moment, however deep the model is.

        Raises:
            BadInput: as `plan`.
        """
        return explore(model, token, tricks)

    def search(self, words: str, limit: int = 8) -> list[Found]:
        """Public models of the Hub that match, for a search box.

        Raises:
            BadInput: the Hub cannot be asked now.
        """
        return search(words, limit)

    def submit(
        self,
        model: str,
        tricks: Sequence[str],
        to: str | None = None,
        *,
        pr: bool = False,
        private: bool = False,
        grant: Grant | None = None,
        user: str | None = None,
        schedule: bool = False,
        evidence: EvidenceRequest | None = None,
    ) -> Job:
        """Queue a conversion, or find the job that does the same already.

        Without `to` it goes to a new repo of the token's user, named after its source.

        Args:
            evidence: how much is measured before it may be published; `quick` where nothing is said. The
                job's `evidence_asked` keeps it, with `seconds`, about how long it takes on this machine.
            grant: a visitor's sign-in: it is this token that the job uses, and no other. It is refused where
                it is too wide, too narrow or about to end (`check_grant`), sealed for this job, and gone when
                the job ends; a retry after that asks to sign in and submit again.
            user: who asks, where no `grant` says so; jobs of different users take turns, and limits count
                for each. None for whoever runs this installation.
            schedule: nobody waits for it: it comes after what people ask for.

        Raises:
            BadInput: model, trick, option, destination or sign-in cannot be used as asked, or a limit is
                reached.
        """
        recipe = _recipe(tricks)
        names = [str(trick) for trick in recipe]
        token = None
        if grant is not None:
            check_grant(grant, pr=pr)
            token = grant.token
        if to is None or grant is not None:
            name, _ = namespaces(token)
            to = f"{name}/{converted_name(model, names)}" if to is None else to
            user = name if grant is not None else user
        source = resolve(model, token)
        to = check_destination(to, token, pr, source)
        check_visibility(source, to, private)
        self.settings.limits.check_model(source.model, source.size_bytes)
        asked = None if evidence is None else evidence.settled()
        seconds = 0.0 if asked is None else round(seconds_for(asked, source), 1)
        store, app = self._connect()
        job_id = new_id()
        if grant is not None:
            self._vault.keep(job_id, grant)  # before the job: a worker may take it at once
        mine = user if private or source.private else None  # nobody else is told that there is such a job
        job, new = store.create(
            model=model if source.folder is None else source.folder,
            tricks=names,
            to=to,
            pr=pr,
            private=private,
            source=source.to_json(),
            key=request_key(
                source.key,
                names,
                to,
                pr=pr,
                private=private,
                user=mine,
                evidence=None if is_default(asked) else asked,
            ),
            user=_user(user),
            operator_token=grant is None,
            lane=self._lane(source.size_bytes, seconds, schedule),
            evidence_asked=None if asked is None else asked | {"seconds": seconds},
            limits=self.settings.limits,
            job_id=job_id,
        )
        if new:
            _call_workers(app, job)
        elif grant is not None:
            self._vault.forget(job_id)
        return job

    @staticmethod
    def recipes() -> dict[str, str]:
        """The recipes of evidence by name, each with what it is for in one line: what a page offers.

        The name goes into `EvidenceRequest(recipe=...)` and that into `submit` and `estimate`; a page that
        takes a recipe of the user's own passes the YAML text in its place.
        """
        from evals import ABOUT

        return dict(ABOUT)

    def estimate(
        self, model: str, evidence: EvidenceRequest | None = None, token: str | bool | None = None
    ) -> float:
        """About how many seconds the evidence would take on this machine; no weight is read.

        Raises:
            BadInput: no such model, or evidence that cannot be asked for.
        """
        return seconds_for((evidence or EvidenceRequest()).settled(), resolve(model, token))

    def _lane(self, size: int, seconds: float, schedule: bool) -> str:
        """Where a job waits: `size` in bytes, `seconds` that its evidence is expected to take here."""
        settings = self.settings
        long = seconds >= settings.long_from
        on_gpu = (long or size >= settings.gpu_from) and self._registry.has(Queue.GPU)
        large = long or size >= settings.large_from
        return lane(Queue.GPU if on_gpu else Queue.CPU, schedule=schedule, large=large)

    def job(self, job_id: str, *, viewer: str | None = None) -> Job:
        """The job.

        Here and below, `viewer` is the user who asks. Others' private jobs do not exist for them, and they
        change their own jobs alone. None is whoever runs this installation, who may do anything.

        Raises:
            BadInput: there is no such job; so do all that take an id.
        """
        job = self._store.get(job_id)
        if not _may_see(job, viewer):
            raise no_job(job_id)
        return job

    def jobs(self, limit: int = 50, *, viewer: str | None = None) -> list[Job]:
        """The newest jobs, newest first."""
        return [job for job in self._store.latest(limit) if _may_see(job, viewer)]

    def events(
        self, job_id: str, after: str = "0", block_ms: int = 0, *, viewer: str | None = None
    ) -> list[Event]:
        """What the job told after the event id `after`; waits up to `block_ms` where that is nothing yet."""
        self.job(job_id, viewer=viewer)
        return self._store.events(job_id, after, block_ms)

    def place(self, job_id: str, *, viewer: str | None = None) -> tuple[int, int]:
        """How many jobs will at most be begun before this queued one, and how many are queued in all."""
        job = self.job(job_id, viewer=viewer)
        return self._store.ahead(job), self._store.waiting()

    def cancel(self, job_id: str, *, viewer: str | None = None) -> Job:
        """Cancel a queued job, or ask a running one to stop."""
        self._check_owner(job_id, viewer)
        job = self._store.cancel(job_id)
        if job.state.final:
            self._vault.forget(job_id)
        return job

    def retry(self, job_id: str, *, viewer: str | None = None) -> Job:
        """Queue a failed or cancelled job again; a failed one goes on at the stage it was in."""
        self._check_owner(job_id, viewer)
        store, app = self._connect()
        job = store.retry(job_id)
        _call_workers(app, job)
        return job

    def card(self, job_id: str, *, viewer: str | None = None) -> str | None:
        """The card that the job published, as Markdown; it is kept for a while only, as are the next two."""
        return self._paper(job_id, "card", viewer)

    def evidence(self, job_id: str, *, viewer: str | None = None) -> Evidence | None:
        """What the job measured."""
        from evals import Evidence

        text = self._paper(job_id, "evidence", viewer)
        return None if text is None else Evidence.from_json(json.loads(text))

    def picture(self, job_id: str, *, viewer: str | None = None) -> bytes | None:
        """The evidence drawn, one PNG of up to four panels: the very file that the card shows.

        Losses of single tokens, divergence by position, errors by layer, and documents that flipped. None
        before the job has measured, where nothing could be drawn, or when its details are gone.
        """
        text = self._paper(job_id, "picture", viewer)
        return None if text is None else base64.b64decode(text)

    def job_plan(self, job_id: str, *, viewer: str | None = None) -> Plan | None:
        """The plan that the job carries out."""
        text = self._paper(job_id, "plan", viewer)
        return None if text is None else Plan.from_json(json.loads(text))

    # -- side by side ------------------------------------------------------------------------------

    def compare(
        self,
        job_id: str,
        prompt: str,
        new: int,
        *,
        viewer: str | None = None,
        grant: Grant | None = None,
    ) -> Comparison:
        """Have a published job's source and result write up to `new` tokens on after `prompt`, on a worker.

        Args:
            grant: a visitor's sign-in, with which what is not public is read.

        Raises:
            BadInput: nothing was published, the request is too large, or this user waits for another one.
        """
        check(prompt, new)
        job = self.job(job_id, viewer=viewer)
        check_job(job)
        _, app = self._connect()
        made, fresh = self._comparisons.create(job_id, prompt, new, viewer)
        if fresh:
            if grant is not None:
                self._vault.keep(made.id, grant)
            on_gpu = job.lane.startswith(Queue.GPU) and self._registry.has(Queue.GPU)
            try:
                send_comparison(app, made.id, Queue.GPU if on_gpu else Queue.CPU, TIME_LIMIT_S)
            except Exception as error:
                self._comparisons.release(made)
                log.warning("comparison %s: no message could be sent (%s)", made.id, type(error).__name__)
                raise BadInput("the queue takes nothing now; try again in a minute") from error
        return made

    def comparison(self, comparison_id: str, *, viewer: str | None = None) -> tuple[Comparison, Answer]:
        """What was asked, and what came of it so far.

        Raises:
            BadInput: there is no such comparison, or none for this viewer's eyes.
        """
        self._connect()
        asked = self._comparisons.get(comparison_id)
        self.job(asked.job, viewer=viewer)
        if viewer is not None and asked.user != viewer:
            raise BadInput("this comparison is somebody else's; compare anew")
        return asked, self._comparisons.answer(asked)

    def workers(self) -> list[About]:
        """The living workers."""
        self._connect()
        return self._registry.workers()

    def health(self) -> Health:
        """What this process answers to probes and to Prometheus."""
        store, _ = self._connect()
        return Health(store, self._registry)

    # -- watches -----------------------------------------------------------------------------------

    @property
    def watches(self) -> WatchStore:
        """The watches: their rules, state and history."""
        self._connect()
        return self._watch_store

    @property
    def watching(self) -> Watching:
        """What follows the watches."""
        return Watching(self, self.watches)

    def webhook_receiver(self) -> Receiver | None:
        """What takes the Hub's webhooks; None where no secret is set.

        Raises:
            BadInput: the secret can be guessed.
        """
        if self.settings.webhook_secret is None:
            return None
        _, app = self._connect()
        return Receiver(self.settings.webhook_secret, self.watches, partial(send_look, app))

    # -- inside ------------------------------------------------------------------------------------

    def _paper(self, job_id: str, name: str, viewer: str | None) -> str | None:
        self.job(job_id, viewer=viewer)
        return self._store.paper(job_id, name)

    def _check_owner(self, job_id: str, viewer: str | None) -> None:
        if viewer not in (None, self.job(job_id, viewer=viewer).user):
            raise BadInput(f"job {job_id} is somebody else's; only they can change it")

    @property
    def _store(self) -> JobStore:
        return self._connect()[0]

    @property
    def _registry(self) -> Registry:
        self._connect()
        assert self._workers is not None
        return self._workers

    def _connect(self) -> tuple[JobStore, Celery]:
        with self._lock:
            if self._connected is None:
                url = self._stack.enter_context(running_redis(self.settings))
                store, app, self._workers = JobStore(url), make_app(url), Registry(url)
                self._watch_store = WatchStore(url)
                self._stack.callback(self._watch_store.close)
                self._comparisons = Comparisons(url)
                self._stack.callback(self._comparisons.close)
                self._vault = Vault(url, self.settings)
                self._stack.callback(self._vault.close)
                self._stack.callback(store.close)
                self._stack.callback(app.close)
                self._stack.callback(self._workers.close)
                self._connected = store, app
            return self._connected


def _may_see(job: Job, viewer: str | None) -> bool:
    private = job.private or bool((job.source or {}).get("private"))
    return viewer is None or viewer == job.user or not private


def _call_workers(app: Celery, job: Job) -> None:
    """Send the message of a job that is queued already; where that fails, a worker finds the job itself."""
    try:
        send(app, job.id, job.lane.partition("/")[0])
    except Exception as error:  # noqa: BLE001 (the job is accepted; saying no now would be untrue)
        log.warning("job %s: no message could be sent (%s)", job.id, type(error).__name__)


def _user(name: str | None) -> str | None:
    """A user's name as it may stand in a key.

    Raises:
        BadInput: it may not.
    """
    if name is None:
        return None
    if not 0 < len(name) <= 96 or not all(char.isprintable() and char not in " :/" for char in name):
        raise BadInput(f"{name[:96]!r} is no user name; it has 1 to 96 characters and no space, : or /")
    return name


def _recipe(texts: Sequence[str]) -> list[Trick]:
    """Parse tricks.

    Raises:
        BadInput: none, an unknown one, or one twice.
    """
    recipe = [parse_trick(text) for text in texts]
    if not recipe:
        raise BadInput(f"no trick given; known: {', '.join(sorted(TRICKS))}")
    names = [trick.name for trick in recipe]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{name} is given twice; give it once")
    return recipe


def _is_source_of(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the files in `folder` are those that the manifest's conversion read."""
    files = manifest["source"]["files"]
    try:
        return bool(file_digests(folder, files) == files)
    except BadInput:
        return False


def _as_converted(source: Source, manifest: dict[str, Any]) -> Source:
    """The source as the card should name it: by its Hub commit, even where a copy of it was measured."""
    said = manifest["source"]
    if said["kind"] != "hub" or source.folder is None:
        return source
    return dataclasses.replace(source, model=said["id"], commit=said["commit"], folder=None)
