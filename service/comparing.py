"""A converted model beside its source: somebody's prompt, and what both wrote, kept for an hour.

Keys under `tricksmith:`, all of which expire:

    compare:ID          hash    the request
    compare:ID:told     stream  what a worker told: {"json": one object, see `evals.writing`}
    compare:ID:claimed  string  the worker that runs it: a message may come twice
    comparing:USER      string  the comparison that this user waits for; one at a time
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

from service.jobs import PREFIX, SOCKET_TIMEOUT, Job, State
from tricks import BadInput

LONGEST_PROMPT = 2000  # characters
MOST_NEW = 128  # tokens
KEPT_S = 3600
TIME_LIMIT_S = 600.0
"""From the question on: an answer that comes later finds nobody."""


@dataclass(frozen=True)
class Comparison:
    """One request. `user` is who asked, None for whoever runs this installation."""

    id: str
    job: str
    prompt: str
    new: int
    user: str | None
    created: float


@dataclass(frozen=True)
class Token:
    """One token that a model wrote; `lead` is by how many logits it led the second best."""

    id: int
    text: str
    lead: float


@dataclass
class Side:
    """What one of the two models wrote so far; the figures come at its end."""

    tokens: list[Token] = field(default_factory=list)
    prompt_tokens: int | None = None
    cache_bytes: int | None = None
    tokens_per_second: float | None = None
    done: bool = False


@dataclass
class Answer:
    """What came of a comparison so far; `state` is waiting, running, done or failed."""

    state: str = "waiting"
    reason: str | None = None
    where: str = ""
    """The device and the dtype."""
    source: Side = field(default_factory=Side)
    converted: Side = field(default_factory=Side)

    @property
    def final(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "failed")

    @property
    def parted(self) -> int | None:
        """The first token, counted from 0, that differs; None where all that both wrote is the same."""
        ours, theirs = self.converted.tokens, self.source.tokens
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one.id != other.id:
                return number
        both = self.source.done and self.converted.done
        return min(len(ours), len(theirs)) if both and len(ours) != len(theirs) else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "final": self.final, "parted": self.parted}

    def take(self, told: dict[str, Any]) -> None:
        """One thing that the worker told."""
        if "state" in told:
            self.state, self.reason = told["state"], told.get("reason")
            return
        side: Side = getattr(self, told["side"])
        if "id" in told:
            side.tokens.append(Token(told["id"], told["text"], told["lead"]))
        elif "cache_bytes" in told:
            side.cache_bytes, side.tokens_per_second = told["cache_bytes"], told["tokens_per_second"]
            side.done = True
        else:
            side.prompt_tokens = told["prompt_tokens"]
            self.where = f"{told['device']}, {told['dtype']}"


def check(prompt: str, new: int) -> None:
    """Hold a request to its limits.

    Raises:
        BadInput: it is empty or too long.
    """
    if not prompt.strip():
        raise BadInput("the prompt is empty; write a few words")
    if len(prompt) > LONGEST_PROMPT:
        raise BadInput(f"the prompt has {len(prompt):,} characters; {LONGEST_PROMPT:,} are the most")
    if not 1 <= new <= MOST_NEW:
        raise BadInput(f"{new:,} new tokens cannot be asked for; ask for 1 to {MOST_NEW}")


def check_job(job: Job) -> None:
    """Raises BadInput where a job has no result that could be compared."""
    if job.state is not State.PUBLISHED or job.result is None:
        raise BadInput(f"job {job.id} is {job.state.value}; only what was published can be compared")


class Comparisons:
    """Requests and what was told of them; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=SOCKET_TIMEOUT, socket_connect_timeout=SOCKET_TIMEOUT
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def create(self, job_id: str, prompt: str, new: int, user: str | None) -> tuple[Comparison, bool]:
        """Keep a request, or find the same one that this user waits for already; and whether it is new.

        Raises:
            BadInput: the user waits for another one.
        """
        now, _ = self._redis.time()
        made = Comparison(secrets.token_hex(6), job_id, prompt, new, user, float(now))
        # The record before the word that it is waited for: whoever finds that word finds the record.
        self._redis.set(_name(made.id), json.dumps(asdict(made)), ex=KEPT_S)
        mine = f"{PREFIX}comparing:{user or ''}"
        if self._redis.set(mine, made.id, nx=True, ex=int(TIME_LIMIT_S)):
            return made, True
        self._redis.delete(_name(made.id))
        other = self._redis.get(mine)
        found = self.get(other) if other else None
        if found is not None and (found.job, found.prompt, found.new) == (job_id, prompt, new):
            return found, False
        raise BadInput("you wait for another comparison; ask again when it is done")

    def get(self, comparison_id: str) -> Comparison:
        """The request.

        Raises:
            BadInput: there is none, or none any more.
        """
        text = self._redis.get(_name(comparison_id))
        if text is None:
            raise BadInput("this comparison is gone: they are kept for an hour; compare again")
        return Comparison(**json.loads(text))

    def answer(self, comparison: Comparison) -> Answer:
        """What was told so far."""
        answer = Answer()
        for _, entry in self._redis.xrange(_name(comparison.id) + ":told"):
            answer.take(json.loads(entry["json"]))
        now, _ = self._redis.time()
        if not answer.final and now - comparison.created > TIME_LIMIT_S:
            answer.take({"state": "failed", "reason": "no worker came to an end in time; compare again"})
        return answer

    def claim(self, comparison_id: str) -> Comparison | None:
        """The request, for the one worker that runs it; None for any other, or where nobody waits."""
        if not self._redis.set(_name(comparison_id) + ":claimed", "1", nx=True, ex=KEPT_S):
            return None
        try:
            return self.get(comparison_id)
        except BadInput:
            return None

    def left(self, comparison: Comparison) -> float:
        """For how many more seconds somebody waits for it."""
        now, micro = self._redis.time()
        return comparison.created + TIME_LIMIT_S - float(now) - float(micro) / 1e6

    def tell(self, comparison: Comparison, told: dict[str, Any]) -> None:
        """Something to tell whoever waits."""
        name = _name(comparison.id) + ":told"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.xadd(name, {"json": json.dumps(told)}, maxlen=4 * MOST_NEW)
            pipe.expire(name, KEPT_S)
            pipe.execute()

    def end(self, comparison: Comparison, state: str, reason: str | None = None) -> None:
        """It is done or failed; the user may ask for another."""
        self.tell(comparison, {"state": state, "reason": reason})
        self.release(comparison)

    def release(self, comparison: Comparison) -> None:
        """The user waits for it no more."""
        self._redis.delete(f"{PREFIX}comparing:{comparison.user or ''}")


def _name(comparison_id: str) -> str:
    return f"{PREFIX}compare:{comparison_id}"
