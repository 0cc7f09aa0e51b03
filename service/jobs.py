"""Job records in Redis, and the only ways in which a job may change.

Keys, all under `tricksmith:`

    job:ID           hash    the record; `state` moves only along `MOVES`
    job:ID:events    stream  what the job told (see events.py)
    job:ID:lease     string  the worker that runs the job; gone when that worker went silent
    job:ID:papers    hash    plan, evidence (JSON) and card (Markdown)
    jobs             zset    all job ids by the time they were made
    active:KEY       string  the job that is queued or running for this request
    unsent           zset    queued jobs whose Celery message is not known to be sent, by time
    running          set     running jobs, to find those whose lease ran out

Every change of state is one Lua script, so that record, event, `active`, `unsent` and `running` agree at
any moment. A worker names itself as `owner` when it begins a job; whoever is no longer the owner (paused
past its lease, say) can change nothing more.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from service.events import KEPT_EVENTS, Event
from tricks import BadInput, TricksmithError

SCHEMA = 1
PREFIX = "tricksmith:"


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
    """Whose sign-in the job uses; None: the operator's token."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_record(record: Mapping[str, str]) -> Job:
        """Read a Redis hash whose values are JSON; fields of later schemas are passed over."""
        known = {field.name for field in fields(Job)}
        values = {name: json.loads(text) for name, text in record.items() if name in known}
        values["state"] = State(values["state"])
        if values.get("stage") is not None:
            values["stage"] = Stage(values["stage"])
        if values.get("progress") is not None:
            unit, done, total = values["progress"]
            values["progress"] = (unit, done, total)
        return Job(**values)


def request_key(identity: str, tricks: Sequence[str], to: str, *, pr: bool, private: bool) -> str:
    """What two requests share when they ask for the same: source at one commit, recipe, destination."""
    text = json.dumps([identity, list(tricks), to, pr, private])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# All values of the record are JSON, so a state is '"queued"' with its quotes.
_CREATE = """
local old = redis.call('GET', KEYS[1])
if old then
  local state = redis.call('HGET', ARGV[1] .. 'job:' .. old, 'state')
  if state == '"queued"' or state == '"running"' then return old end
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'state', 'queued')
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[5], ARGV[3], ARGV[2])
return ARGV[2]
"""

_MOVE = """
-- KEYS: job, events, active, unsent, running, lease
-- ARGV: id, owner or '', to, from states (comma around each), time, kept events, text,
--       lease in ms or '', refuse when leased ('1' or ''), n, then n fields to delete, then pairs to set
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'missing' end
state = string.sub(state, 2, -2)
if not string.find(ARGV[4], ',' .. state .. ',', 1, true) then return state end
if ARGV[9] == '1' and redis.call('EXISTS', KEYS[6]) == 1 then return state end
local owner = redis.call('HGET', KEYS[1], 'owner')
if ARGV[8] == '' and ARGV[2] ~= '' and owner ~= ARGV[2] then return state end
local n = tonumber(ARGV[10])
for i = 1, n do redis.call('HDEL', KEYS[1], ARGV[10 + i]) end
redis.call('HSET', KEYS[1], 'state', '"' .. ARGV[3] .. '"', unpack(ARGV, 11 + n))
if ARGV[3] == 'running' then
  redis.call('HSET', KEYS[1], 'owner', ARGV[2])
  redis.call('SET', KEYS[6], ARGV[2], 'PX', ARGV[8])
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
  redis.call('SADD', KEYS[5], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
else
  redis.call('HDEL', KEYS[1], 'owner')
  redis.call('DEL', KEYS[6])
  redis.call('SREM', KEYS[5], ARGV[1])
  if ARGV[3] == 'queued' then
    redis.call('SET', KEYS[3], ARGV[1])
    redis.call('ZADD', KEYS[4], ARGV[5], ARGV[1])
  else
    redis.call('ZREM', KEYS[4], ARGV[1])
    if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
  end
end
local entry = {'kind', 'state', 'state', ARGV[3]}
if ARGV[7] ~= '' then entry[5] = 'text'; entry[6] = ARGV[7] end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', unpack(entry))
return 'ok'
"""

_TELL = """
-- KEYS: job, events; ARGV: owner, kept events, n, then n words of pairs to set, then the event's pairs
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local n = tonumber(ARGV[3])
if n > 0 then redis.call('HSET', KEYS[1], unpack(ARGV, 4, 3 + n)) end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 4 + n))
return 1
"""

_BEAT = """
-- KEYS: job, lease; ARGV: owner, lease in ms. Answer: -1 not the owner, 1 cancel asked for, 0 go on
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if redis.call('HGET', KEYS[1], 'cancel') == 'true' then return 1 end
return 0
"""


class JobStore:
    """Reads and changes job records; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        # A short loss of Redis (a restart, say) must not fail a job that runs for hours.
        retry = Retry(ExponentialBackoff(cap=2.0, base=0.05), retries=12)
        self._redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError],
        )
        self._create = self._redis.register_script(_CREATE)
        self._move = self._redis.register_script(_MOVE)
        self._tell = self._redis.register_script(_TELL)
        self._beat = self._redis.register_script(_BEAT)

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
            raise BadInput(f"there is no job {job_id!r}; `tricksmith jobs` lists them")
        return Job.from_record(record)

    def latest(self, limit: int = 50) -> list[Job]:
        """The newest jobs, newest first."""
        ids = self._redis.zrevrange(PREFIX + "jobs", 0, max(limit, 0) - 1) if limit > 0 else []
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(_job(job_id))
            return [Job.from_record(record) for record in pipe.execute() if record]

    def events(self, job_id: str, after: str = "0", block_ms: int = 0) -> list[Event]:
        """Events later than the event id `after`; wait up to `block_ms` for one if there is none yet."""
        answer = self._redis.xread({_job(job_id) + ":events": after}, block=block_ms or None)
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or []]
        return [Event.from_stream(*entry) for entry in _flat(streams)]

    def paper(self, job_id: str, name: str) -> str | None:
        """What the job's run laid down under `name` (plan, evidence or card), if it got so far."""
        text: str | None = self._redis.hget(_job(job_id) + ":papers", name)
        return text

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
    ) -> tuple[Job, bool]:
        """Make a queued job, or find the one that is queued or running for the same request.

        Returns:
            The job, and whether it is new.
        """
        job = Job(
            id=secrets.token_hex(6),
            model=model,
            tricks=list(tricks),
            to=to,
            state=State.QUEUED,
            created=time.time(),
            pr=pr,
            private=private,
            source=source,
            key=key,
            user=user,
        )
        record = _record({name: value for name, value in asdict(job).items() if value is not None})
        keys = [
            f"{PREFIX}active:{key}",
            _job(job.id),
            _job(job.id) + ":events",
            PREFIX + "jobs",
            PREFIX + "unsent",
        ]
        made = self._create(keys=keys, args=[PREFIX, job.id, job.created, "", *record])
        return self.get(made), made == job.id

    def sent(self, job_id: str) -> None:
        """The job's message is in Celery's queue."""
        self._redis.zrem(PREFIX + "unsent", job_id)

    def unsent(self, older_than: float) -> list[str]:
        """Queued jobs without a known message for more than `older_than` seconds."""
        found: list[str] = self._redis.zrangebyscore(PREFIX + "unsent", "-inf", time.time() - older_than)
        return found

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job now; ask a running one to stop. A finished job stays what it is."""
        job = self.get(job_id)
        # The wish first: a worker that begins the job between the two lines then finds it.
        if not job.state.final:
            self._redis.hset(_job(job_id), "cancel", "true")
        self._try_move(job, State.CANCELLED, {State.QUEUED}, set={"finished": time.time()})
        return self.get(job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            NotOurs: the job is in another state, or the same request is queued or running already.
        """
        job = self.get(job_id)
        again = {State.FAILED, State.CANCELLED}
        active = self._redis.get(f"{PREFIX}active:{job.key}")
        if active and active != job_id:
            raise NotOurs(f"job {active} already does what job {job_id} asked for; follow that one")
        drop = ("reason", "finished", "cancel", "stage", "progress", "verdict")
        answer = self._try_move(job, State.QUEUED, again, drop=drop)
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}; only a failed or cancelled job can be retried")
        return self.get(job_id)

    # -- the working side --------------------------------------------------------------------------

    def begin(self, job_id: str, owner: str, lease: float) -> Job:
        """Take the job: queued, or running at a worker that went silent for its whole lease.

        Raises:
            NotOurs: it is finished, or another worker has it.
        """
        job = self.get(job_id)
        answer = self._try_move(
            job,
            State.RUNNING,
            {State.QUEUED, State.RUNNING},
            owner=owner,
            lease=lease,
            set={"started": job.started or time.time()},
        )
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")
        return self.get(job_id)

    def beat(self, job_id: str, owner: str, lease: float) -> bool:
        """Renew the lease; tell whether somebody asked to cancel.

        Raises:
            NotOurs: the job is another worker's now.
        """
        answer = self._beat(
            keys=[_job(job_id), _job(job_id) + ":lease"], args=[owner, max(1, int(lease * 1000))]
        )
        if answer == -1:
            raise NotOurs(f"job {job_id} is another worker's now")
        return bool(answer)

    def stage(self, job_id: str, owner: str, stage: Stage, text: str | None = None) -> None:
        """The job enters `stage`."""
        event = {"kind": "stage", "stage": stage.value} | ({"text": text} if text else {})
        self._note(job_id, owner, {"stage": stage.value, "progress": None}, event)

    def progress(self, job_id: str, owner: str, stage: Stage, unit: str, done: int, total: int) -> None:
        """How far the job is in `stage`."""
        event = {"kind": "progress", "stage": stage.value, "unit": unit, "done": done, "total": total}
        self._note(job_id, owner, {"progress": [unit, done, total]}, event)

    def remember(self, job_id: str, owner: str, **values: Any) -> None:
        """Set fields of the record other than the state."""
        event = {"kind": "record", "text": ", ".join(sorted(values))}
        self._note(job_id, owner, values, event)

    def lay_down(self, job_id: str, name: str, text: str) -> None:
        """Keep the job's plan, evidence or card."""
        self._redis.hset(_job(job_id) + ":papers", name, text)

    def finish(
        self,
        job_id: str,
        owner: str,
        state: State,
        *,
        reason: str | None = None,
        verdict: str | None = None,
        result: str | None = None,
    ) -> None:
        """The job ends.

        Raises:
            NotOurs: the job is another worker's now.
        """
        found = {"reason": reason, "verdict": verdict, "result": result, "finished": time.time()}
        values = {name: value for name, value in found.items() if value is not None}
        job = self.get(job_id)
        answer = self._try_move(
            job, state, {State.RUNNING}, owner=owner, set=values, text=reason or result or ""
        )
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")

    def give_back(self, job_id: str, owner: str) -> None:
        """The worker stops: the job waits for another one.

        Raises:
            NotOurs: the job is another worker's now.
        """
        answer = self._try_move(self.get(job_id), State.QUEUED, {State.RUNNING}, owner=owner)
        if answer != "ok":
            raise NotOurs(f"job {job_id} is {answer}")

    def reclaim(self) -> list[str]:
        """Queue every running job whose worker went silent; their ids."""
        return [job_id for job_id in self._redis.smembers(PREFIX + "running") if self._reclaim(job_id)]

    def _reclaim(self, job_id: str) -> bool:
        if self._redis.exists(_job(job_id) + ":lease"):
            return False
        text = "its worker went silent"
        job = self.get(job_id)
        return self._try_move(job, State.QUEUED, {State.RUNNING}, text=text, unleased=True) == "ok"

    # -- the scripts' callers ----------------------------------------------------------------------

    def _try_move(
        self,
        job: Job,
        to: State,
        sources: set[State],
        *,
        owner: str = "",
        lease: float | None = None,
        set: Mapping[str, Any] | None = None,
        drop: Sequence[str] = (),
        text: str = "",
        unleased: bool = False,
    ) -> str:
        """Move the job to `to` from one of `sources`: "ok", or the state that it is in instead.

        `lease` (seconds) makes `owner` the job's owner; otherwise a given `owner` must be the owner
        already. `unleased` and a new owner ask that no lease runs.
        """
        illegal = [state for state in sources if to not in MOVES[state]]
        if illegal:
            raise ValueError(f"no move from {illegal} to {to}")
        names = "," + ",".join(sorted(sources)) + ","
        keys = [
            _job(job.id),
            _job(job.id) + ":events",
            f"{PREFIX}active:{job.key}",
            PREFIX + "unsent",
            PREFIX + "running",
            _job(job.id) + ":lease",
        ]
        milliseconds = "" if lease is None else max(1, int(lease * 1000))
        refuse = "1" if unleased or lease is not None else ""
        head = [job.id, owner, to.value, names, time.time(), KEPT_EVENTS, text, milliseconds, refuse]
        pairs = _record({"schema": SCHEMA, **(set or {})})
        answer: str = self._move(keys=keys, args=[*head, len(drop), *drop, *pairs])
        return answer

    def _note(self, job_id: str, owner: str, values: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        pairs = _record(values)
        words = [str(word) for pair in event.items() for word in pair]
        keys = [_job(job_id), _job(job_id) + ":events"]
        if not self._tell(keys=keys, args=[owner, KEPT_EVENTS, len(pairs), *pairs, *words]):
            raise NotOurs(f"job {job_id} is another worker's now")


def _job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _record(values: Mapping[str, Any]) -> list[str]:
    """Name, JSON, name, JSON: as HSET takes them."""
    return [word for name, value in values.items() for word in (name, json.dumps(value))]


def _flat(streams: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The entries of `streams`; RESP3 wraps them in one list more than RESP2."""
    for entries in streams:
        for entry in entries:
            if entry and isinstance(entry[0], str):
                yield entry[0], entry[1]
            else:
                yield from entry
