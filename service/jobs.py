"""Job records in Redis, and the only ways in which a job may change.

Keys, all under `tricksmith:`

    job:ID               hash    the record; `state` moves only along `MOVES`
    job:ID:events        stream  what the job told (see events.py)
    job:ID:lease         string  the attempt that runs the job; gone when its worker went silent
    job:ID:papers        hash    plan, evidence (JSON), its picture (PNG, base64) and card (Markdown)
    jobs                 zset    all job ids by the time they were made
    finished, detailed   zset    finished jobs by the time of their end: all; those with their details
    active:KEY           string  the job that is queued or running for this request
    waiting              zset    queued jobs, by the time they were queued
    line:LANE            zset    users with queued jobs in this lane, by their last turn (see lanes.py)
    line:LANE:USER       zset    this user's queued jobs, oldest first
    running, running:USER, running/LANE   sets of running jobs
    bytes:DAY:USER       string  source bytes that the user submitted that day
    made:DAY:USER        string  jobs that the user submitted that day
    metrics              hash    counts of what happened (see metrics.py)

Every change of state is one Lua script (job_scripts.py), so that all of these agree at any moment. An attempt
names itself as `owner`, a word that is used once, when it takes a job; whoever is no longer the owner (paused
past its lease, say) can change nothing more: the owner is the job's fencing token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from service import job_scripts as scripts
from service.events import KEPT_EVENTS, Event
from service.lanes import LANES, LARGE_LANES, lane
from service.limits import Limits, Reached
from tricks import BadInput, TricksmithError

log = logging.getLogger(__name__)

SCHEMA = 3
"""Of the records that this release makes; 2 had no `evidence_asked`.

A release takes no job of a later schema: it would leave out what it does not know, and say nothing. So in a
rolling upgrade old workers finish what they have, and what new faces submit waits for new workers.
"""
PREFIX = "tricksmith:"
MOST_LOST = 5
"""A job that took this many workers down with it is failed, not tried again."""
SOCKET_TIMEOUT = 10.0  # seconds; a network that swallows packets must not hold a thread for ever
LONGEST_BLOCK = 5000  # ms that one question for events may wait


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHED = "published"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the job unless somebody asks."""
        return self not in (State.QUEUED, State.RUNNING)


class Stage(StrEnum):
    """What a running job is doing, in order."""

    RESOLVE = "resolve"
    PLAN = "plan"
    FETCH = "fetch"
    CONVERT = "convert"
    VERIFY = "verify"
    PUBLISH = "publish"


MOVES: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    # Back to the queue: the worker stops or died. Running again: another worker took over.
    State.RUNNING: frozenset(
        {State.QUEUED, State.RUNNING, State.PUBLISHED, State.REJECTED, State.FAILED, State.CANCELLED}
    ),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.REJECTED: frozenset(),
    State.PUBLISHED: frozenset(),
}


class NotOurs(TricksmithError):
    """The job may not be changed in this way now: it is in another state or another worker has it."""


class NewerRecord(BadInput):
    """A job's record says what this release does not know."""


@dataclass(frozen=True)
class Job:
    """One request to convert. Times are unix seconds; `progress` is (unit, done, total)."""

    id: str
    model: str
    tricks: list[str]
    to: str
    state: State
    created: float
    pr: bool = False
    private: bool = False
    stage: Stage | None = None
    progress: tuple[str, int, int] | None = None
    reason: str | None = None
    verdict: str | None = None
    result: str | None = None
    source: dict[str, Any] | None = None
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    cancel: bool = False
    key: str = ""
    user: str | None = None
    """Who asked; None: whoever runs this installation."""
    operator_token: bool = False
    """Whether a user's job uses the operator's token, not one of the user's own."""
    lane: str = lane()
    size: int = 0
    """Bytes of the source."""
    cause: str | None = None
    """Of a failed job: what kind of thing went wrong, one of few words; `reason` says it in full."""
    evidence_asked: dict[str, Any] | None = None
    """What it measures: `recipe` (every entry), `max_memory`, `seconds` (an estimate); None: `quick`."""
    lost: int = 0
    """How many attempts ended with their worker's silence."""
    worker: str | None = None
    """Which worker had it last."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_record(record: Mapping[str, str]) -> Job:
        """Read a Redis hash whose values are JSON; fields of later schemas are passed over.

        Raises:
            NewerRecord: a later schema says something that cannot be passed over.
        """
        known = {field.name for field in fields(Job)}
        values = {name: json.loads(text) for name, text in record.items() if name in known}
        try:
            values["state"] = State(values["state"])
            if values.get("stage") is not None:
                values["stage"] = Stage(values["stage"])
        except ValueError as error:
            raise NewerRecord(
                f"job {values['id']} was made by a newer Tricksmith (records of schema "
                f"{values.get('schema')}, this one reads {SCHEMA}); upgrade this installation"
            ) from error
        if values.get("progress") is not None:
            unit, done, total = values["progress"]
            values["progress"] = (unit, done, total)
        return Job(**values)


def new_id() -> str:
    """An id for a job."""
    return secrets.token_hex(6)


def no_job(job_id: str) -> BadInput:
    """What is said of a job that is not there, or that is not to be seen."""
    return BadInput(f"there is no job {job_id!r}; `tricksmith jobs` lists them")


def request_key(
    identity: str,
    tricks: Sequence[str],
    to: str,
    *,
    pr: bool,
    private: bool,
    user: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> str:
    """What two requests share when they ask for the same: source at one commit, recipe, destination.

    `evidence` is what is to be measured, where that is not what is measured unasked.
    """
    more = [*([user] if user else []), *([dict(evidence)] if evidence else [])]
    text = json.dumps([identity, list(tricks), to, pr, private, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class JobStore:
    """Reads and changes job records; safe to share between threads."""

    def __init__(self, url: str, patience: float = 15.0) -> None:
        """Connect when first used; ask again for about `patience` seconds where Redis does not answer."""
        self.url = url
        retries = max(1, round(patience / 2) + 5)  # the first five take 1.5 s together, the others 2 s each
        self._redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            retry=Retry(ExponentialBackoff(cap=2.0, base=0.05), retries=retries),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError],
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            health_check_interval=30,
        )
        self._left_alone: set[str] = set()
        register = self._redis.register_script
        self._create, self._move, self._take = map(register, (scripts.CREATE, scripts.MOVE, scripts.TAKE))
        self._tell, self._beat, self._lay_down = map(register, (scripts.TELL, scripts.BEAT, scripts.LAY_DOWN))
        self._cancel, self._reclaim, self._retire = map(
            register, (scripts.CANCEL, scripts.RECLAIM, scripts.RETIRE)
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    # -- asking ------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            BadInput: there is no such job.
        """
        record = self._redis.hgetall(_job(job_id))
        if not record:
            raise no_job(job_id)
        return Job.from_record(record)

    def latest(self, limit: int = 50) -> list[Job]:
        """The newest jobs, newest first."""
        ids = self._redis.zrevrange(PREFIX + "jobs", 0, max(limit, 0) - 1) if limit > 0 else []
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(_job(job_id))
            records = [record for record in pipe.execute() if record]
        found = []
        for record in records:
            with suppress(NewerRecord):  # the others are still worth a list
                found.append(Job.from_record(record))
        return found

    def events(self, job_id: str, after: str = "0", block_ms: int = 0) -> list[Event]:
        """Events later than the event id `after`; wait up to `block_ms` for one if there is none yet."""
        answer = self._redis.xread(
            {_job(job_id) + ":events": after}, block=min(block_ms, LONGEST_BLOCK) or None
        )
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or []]
        return [Event.from_stream(*entry) for entry in _flat(streams)]

    def paper(self, job_id: str, name: str) -> str | None:
        """What the job's run laid down under `name` (plan, evidence, picture or card), if it got so far."""
        text: str | None = self._redis.hget(_job(job_id) + ":papers", name)
        return text

    def waiting(self, queue: str | None = None) -> int:
        """How many jobs are queued, in all or for one queue."""
        if queue is None:
            return int(self._redis.zcard(PREFIX + "waiting"))
        return sum(n for name, n in self.lines().items() if name.startswith(queue + "/"))

    def lines(self) -> dict[str, int]:
        """How many jobs are queued in each lane."""
        found: dict[str, int] = {}
        for name in LANES:
            line = f"{PREFIX}line:{name}"
            users = self._redis.zrange(line, 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for user in users:
                    pipe.zcard(f"{line}:{user}")
                found[name] = sum(pipe.execute())
        return found

    def messages(self, key: str) -> int:
        """How many messages lie in Celery's list `key`."""
        return int(self._redis.llen(key))

    def ahead(self, job: Job) -> int:
        """How many jobs of its lane will at most be begun before this queued job, as users take turns."""
        line = f"{PREFIX}line:{job.lane}"
        mine = self._redis.zrank(f"{line}:{job.user or ''}", job.id)
        if mine is None:
            return 0
        users = self._redis.zrange(line, 0, -1)
        with self._redis.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.zcard(f"{line}:{user}")
            sizes = dict(zip(users, pipe.execute(), strict=True))
        user = job.user or ""
        others = users[: users.index(user)] if user in users else users
        before = sum(min(size, mine + (name in others)) for name, size in sizes.items() if name != user)
        return int(mine + before)

    def counts(self) -> dict[str, float]:
        """What the scripts have counted, by name."""
        found = self._redis.hgetall(PREFIX + "metrics")
        return {name: float(number) for name, number in found.items()}

    def oldest_waiting(self) -> float:
        """For how many seconds the job that was queued first has waited; 0 where none waits."""
        first = self._redis.zrange(PREFIX + "waiting", 0, 0, withscores=True)
        now, micro = self._redis.time()
        return max(0.0, now + micro / 1e6 - first[0][1]) if first else 0.0

    def check_writable(self) -> None:
        """Ask Redis to write.

        Raises:
            redis.RedisError: it does not answer, or takes no writes (its disk is full, say).
        """
        self._redis.set(PREFIX + "writable", "1", ex=60)

    def waiting_ids(self, limit: int) -> list[str]:
        """The jobs that were queued first."""
        found: list[str] = self._redis.zrange(PREFIX + "waiting", 0, limit - 1)
        return found

    def running(self) -> list[str]:
        """The running jobs' ids."""
        return sorted(self._redis.smembers(PREFIX + "running"))

    # -- the asking side ---------------------------------------------------------------------------

    def create(
        self,
        *,
        model: str,
        tricks: Sequence[str],
        to: str,
        pr: bool = False,
        private: bool = False,
        source: dict[str, Any],
        key: str,
        user: str | None = None,
        operator_token: bool = False,
        lane: str = lane(),
        evidence_asked: dict[str, Any] | None = None,
        limits: Limits | None = None,
        job_id: str | None = None,
    ) -> tuple[Job, bool]:
        """Make a queued job, or find the one that is queued or running for the same request.

        Returns:
            The job, and whether it is new.

        Raises:
            BadInput: a limit is reached.
        """
        limits = limits or Limits()
        job = Job(
            id=job_id or new_id(),
            model=model,
            tricks=list(tricks),
            to=to,
            state=State.QUEUED,
            created=0.0,  # the script sets it, by the clock of Redis
            pr=pr,
            private=private,
            source=source,
            key=key,
            user=user,
            operator_token=operator_token,
            lane=lane,
            size=int(source.get("size_bytes") or 0),
            evidence_asked=evidence_asked,
        )
        answer = self._ask(
            self._create,
            id=job.id,
            key=key,
            user=user or "",
            lanes=list(LANES),
            size=job.size,
            limits=limits.at_submit(),
            record=_record({name: value for name, value in asdict(job).items() if value is not None}),
        )
        if answer.startswith("limit "):
            raise limits.refusal(Reached(answer.removeprefix("limit ")))
        return self.get(answer), answer == job.id

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job now; ask a running one to stop. A finished job stays what it is."""
        self._ask(self._cancel, id=job_id, text="")
        return self.get(job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            NotOurs: the job is in another state, or the same request is queued or running already.
        """
        self.get(job_id)
        drop = ("reason", "cause", "finished", "cancel", "stage", "progress", "verdict", "lost")
        answer = self._try_move(job_id, State.QUEUED, {State.FAILED, State.CANCELLED}, drop=drop)
        if answer.startswith("active "):
            other = answer.removeprefix("active ")
            raise NotOurs(f"job {other} already does what job {job_id} asked for; follow that one")
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}; only a failed or cancelled job can be retried")
        return self.get(job_id)

    # -- the working side --------------------------------------------------------------------------

    def take(
        self,
        owner: str,
        lease: float,
        lanes: Sequence[str],
        *,
        worker: str = "",
        user_running: int = 0,
        large: int = 1,
    ) -> Job | None:
        """Take the next job of the first of `lanes` in which one may run; None where none may.

        Args:
            owner: a word that was never used before: the attempt's.
            lease: seconds without a beat after which the job is another's.
            user_running: most running jobs of one user; 0 for any number.
            large: most running jobs in the large lanes among `lanes`.
        """
        queues = {name.partition("/")[0] for name in lanes}
        taken = self._ask(
            self._take,
            lanes=list(lanes),
            owner=owner,
            lease=_milliseconds(lease),
            schema=SCHEMA,
            set=_record({"worker": worker}),
            user_running=user_running,
            large=large,
            large_lanes=[name for name in LARGE_LANES if name.partition("/")[0] in queues],
        )
        if taken.startswith("newer "):
            self._leave_alone(taken.removeprefix("newer "))
            return None
        return self.get(taken) if taken else None

    def _leave_alone(self, job_id: str) -> None:
        """Say once of each job that this release takes no jobs of its kind."""
        if job_id in self._left_alone:
            return
        self._left_alone.add(job_id)
        schema = self._redis.hget(_job(job_id), "schema")
        log.warning(
            "job %s waits for a newer worker: its record has schema %s, this knows %d; finish the upgrade",
            job_id,
            schema,
            SCHEMA,
        )

    def begin(self, job_id: str, owner: str, lease: float, worker: str = "") -> Job:
        """Take this job: queued, or running at a worker that went silent for its whole lease.

        Raises:
            NotOurs: it is finished, or another worker has it, or it asks for what this release cannot do.
        """
        schema = self.get(job_id).schema
        if schema > SCHEMA:
            raise NotOurs(f"job {job_id} is of schema {schema}, for a newer worker than this")
        answer = self._try_move(
            job_id,
            State.RUNNING,
            {State.QUEUED, State.RUNNING},
            owner=owner,
            lease=lease,
            set={"worker": worker},
            free=True,
        )
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")
        return self.get(job_id)

    def beat(self, job_id: str, owner: str, lease: float) -> bool:
        """Renew the lease; tell whether somebody asked to cancel.

        Raises:
            NotOurs: the job is another worker's now.
        """
        answer = self._ask(self._beat, id=job_id, owner=owner, lease=_milliseconds(lease))
        if answer == -1:
            raise NotOurs(f"job {job_id} is another worker's now")
        return bool(answer)

    def stage(self, job_id: str, owner: str, stage: Stage, text: str | None = None) -> None:
        """The job enters `stage`."""
        event = {"kind": "stage", "stage": stage.value} | ({"text": text} if text else {})
        self._note(job_id, owner, {"stage": stage.value, "progress": None}, event, stage)

    def progress(self, job_id: str, owner: str, stage: Stage, unit: str, done: int, total: int) -> None:
        """How far the job is in `stage`."""
        event = {"kind": "progress", "stage": stage.value, "unit": unit, "done": done, "total": total}
        self._note(job_id, owner, {"progress": [unit, done, total]}, event)

    def say(self, job_id: str, owner: str, stage: Stage, text: str) -> None:
        """A sentence about what the job waits for in `stage`."""
        self._note(job_id, owner, {}, {"kind": "note", "stage": stage.value, "text": text})

    def lay_down(self, job_id: str, owner: str, name: str, text: str) -> None:
        """Keep the job's plan, evidence or card.

        Raises:
            NotOurs: the job is another worker's now.
        """
        ask = json.dumps({"id": job_id, "owner": owner, "name": name})
        if not self._lay_down(args=[ask, text]):
            raise NotOurs(f"job {job_id} is another worker's now")

    def finish(
        self,
        job_id: str,
        owner: str,
        state: State,
        *,
        reason: str | None = None,
        cause: str | None = None,
        verdict: str | None = None,
        result: str | None = None,
    ) -> None:
        """The job ends.

        Raises:
            NotOurs: the job is another worker's now.
        """
        found = {"reason": reason, "cause": cause, "verdict": verdict, "result": result}
        values = {name: value for name, value in found.items() if value is not None}
        text = reason or result or ""
        answer = self._try_move(job_id, state, {State.RUNNING}, owner=owner, set=values, text=text)
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")

    def give_back(self, job_id: str, owner: str) -> None:
        """The worker stops: the job waits for another one.

        Raises:
            NotOurs: the job is another worker's now.
        """
        answer = self._try_move(job_id, State.QUEUED, {State.RUNNING}, owner=owner)
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")

    def reclaim(self) -> list[str]:
        """Queue every running job whose worker went silent; their ids.

        One that took `MOST_LOST` workers down is failed instead.
        """
        reason = (
            f"its worker died or went silent {MOST_LOST} times in a row; "
            "see the workers' logs, most likely memory ran out"
        )
        ask = {"most": MOST_LOST, "text": "its worker went silent", "reason": json.dumps(reason)}
        return [job_id for job_id in self.running() if self._ask(self._reclaim, id=job_id, **ask) == "ok"]

    # -- what becomes of finished jobs ---------------------------------------------------------------

    def finished_before(self, seconds: float, limit: int) -> list[str]:
        """Jobs that ended longer ago than that, oldest first."""
        return self._before("finished", seconds, limit)

    def detailed_before(self, seconds: float, limit: int) -> list[str]:
        """Jobs that ended longer ago than that and still have their details, oldest first."""
        return self._before("detailed", seconds, limit)

    def drop_details(self, job_id: str) -> bool:
        """Drop a finished job's events, papers and list of files; whether it was finished."""
        return bool(self._ask(self._retire, id=job_id, whole=False))

    def forget(self, job_id: str) -> bool:
        """Drop a finished job; whether it was finished."""
        return bool(self._ask(self._retire, id=job_id, whole=True))

    def _before(self, name: str, seconds: float, limit: int) -> list[str]:
        now, micro = self._redis.time()
        until = now + micro / 1e6 - seconds
        found: list[str] = self._redis.zrangebyscore(PREFIX + name, "-inf", until, start=0, num=limit)
        return found

    # -- the scripts' callers ----------------------------------------------------------------------

    def _ask(self, script: Any, **ask: Any) -> Any:
        # Lua takes JSON's null for true.
        given = {name: value for name, value in ask.items() if value is not None}
        return script(args=[json.dumps({"kept": KEPT_EVENTS, **given})])

    def _try_move(
        self,
        job_id: str,
        to: State,
        sources: set[State],
        *,
        owner: str | None = None,
        lease: float | None = None,
        set: Mapping[str, Any] | None = None,
        drop: Sequence[str] = (),
        text: str = "",
        free: bool = False,
    ) -> str:
        """Move the job to `to` from one of `sources`: "ok", or the state that it is in instead.

        To `running`, `owner` becomes the owner, with a `lease` (seconds); to anywhere else a given `owner`
        must be the owner already. `free` asks that no lease runs.
        """
        illegal = [state for state in sources if to not in MOVES[state]]
        if illegal:
            raise ValueError(f"no move from {illegal} to {to}")
        answer: str = self._ask(
            self._move,
            id=job_id,
            to=to.value,
            **{"from": {state.value: True for state in sources}},
            owner=owner,
            lease=None if lease is None else _milliseconds(lease),
            set=_record(set or {}),
            drop=list(drop),
            text=text,
            free=free,
        )
        return answer

    def _note(
        self,
        job_id: str,
        owner: str,
        values: Mapping[str, Any],
        event: Mapping[str, Any],
        stage: Stage | None = None,
    ) -> None:
        words = [str(word) for pair in event.items() for word in pair]
        ask: dict[str, Any] = {"id": job_id, "owner": owner, "set": _record(values), "event": words}
        if not self._ask(self._tell, **ask, **({"stage": stage.value} if stage else {})):
            raise NotOurs(f"job {job_id} is another worker's now")


def _job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _record(values: Mapping[str, Any]) -> dict[str, str]:
    """Name -> JSON, as a record keeps its fields."""
    return {name: json.dumps(value) for name, value in values.items()}


def _flat(streams: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The entries of `streams`; RESP3 wraps them in one list more than RESP2."""
    for entries in streams:
        for entry in entries:
            if entry and isinstance(entry[0], str):
                yield entry[0], entry[1]
            else:
                yield from entry
