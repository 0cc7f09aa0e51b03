"""The Hub's client: with time limits and with patience; its failures are in `hub_words`.

Nothing here keeps a token: `None` means the one that huggingface_hub itself finds (environment or login).

How it waits: the client is made by our factory (huggingface_hub's documented way to set one) with the hooks
of huggingface_hub's own. It gives every request a time limit, and turns an answer that asks to wait into
`SlowDown`, and a failure that may pass into `Failing`, before the client's own retries would sleep on it,
deaf to a cancelled job. `ask` does the waiting: as long as the Hub asks for, within the `patience` of whoever
called.
"""

from __future__ import annotations

import email.utils
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, get_session, set_client_factory
from huggingface_hub.utils import disable_progress_bars, logging, parse_ratelimit_headers

from service.hub_words import (
    DEFAULT_ENDPOINT,
    Failing,
    HubConflict,
    HubMissing,
    HubUnavailable,
    HubUnusable,
    SlowDown,
    endpoint,
    gated,
    hub_errors,
)

__all__ = [
    "DEFAULT_ENDPOINT",
    "LONG_S",
    "TIMEOUT_S",
    "HubConflict",
    "HubMissing",
    "HubUnavailable",
    "HubUnusable",
    "ask",
    "endpoint",
    "gated",
    "hub",
    "hub_errors",
    "is_hub_id",
    "patience",
]

T = TypeVar("T")

TIMEOUT_S = 30.0
"""What a question about metadata may take."""
CONNECT_S = 10.0
LONG_S = 1800.0
"""How long in all a job's stage waits for a Hub that asks to slow down."""
TRANSFER_S = 120.0
"""How long an upload, a download or a commit may stand still."""

_PASSING = frozenset({500, 502, 503, 504, *range(520, 531)})
"""Statuses of a Hub, or of a proxy before it, that is ill or restarts."""

# ASCII only: look-alike letters of other alphabets name another repo, or none.
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Patience:
    """How to wait for the Hub: `seconds` in all where it asks for it, and, where it fails, for `failing`
    seconds at a stretch, or, where that is None, until something failed `tries` times. `stop` may raise;
    `tell` gets a line before each wait.
    """

    seconds: float = 15.0
    tries: int = 2
    failing: float | None = None
    stop: Callable[[], None] = lambda: None
    tell: Callable[[str], None] = lambda text: None

    @property
    def longest(self) -> float:
        """Seconds of the longest wait that the Hub did not ask for; the first is a sixtieth of it.

        Half a minute where it may fail for ten.
        """
        return 30.0 if self.failing is None else self.failing / 20


_PATIENCE: ContextVar[Patience] = ContextVar("patience", default=Patience())  # noqa: B039 (it is frozen)
_FACTORY = threading.Lock()
_made = False


@contextmanager
def patience(seconds: float, tries: int = 6, **more: Any) -> Iterator[None]:
    """Within the block, `ask` waits for a busy or failing Hub as `Patience` says; `more` are its fields.

    What is not given is as it is around the block, but for `tries`.
    """
    token = _PATIENCE.set(replace(_PATIENCE.get(), seconds=seconds, tries=tries, **more))
    try:
        yield
    finally:
        _PATIENCE.reset(token)


def hub(token: str | bool | None = None) -> HfApi:
    """The client for `endpoint()`."""
    global _made
    with _FACTORY:
        if not _made:
            set_client_factory(partial(_client, get_session().event_hooks))
            disable_progress_bars()  # ours are on stderr already, or there is no terminal
            if "HF_HUB_VERBOSITY" not in os.environ:  # what it warns of is handled here, or said by us
                logging.set_verbosity_error()
            _made = True
    return HfApi(endpoint=endpoint(), token=token, library_name="tricksmith")


def is_hub_id(text: str) -> bool:
    """Whether `text` is written as `namespace/name` (or an old one-word id) in the Hub's alphabet."""
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def ask(repo: str, call: Callable[[], T], revision: str | None = None) -> T:
    """What `call` returns; a busy or failing Hub is asked again within the `patience` in force.

    Only for calls that may safely be made twice.

    Raises:
        BadInput: in one line, what the Hub said about `repo`.
    """
    given = _PATIENCE.get()
    begun = time.monotonic()
    ill: float | None = None  # since when it fails
    failures = 0
    for attempt in itertools.count():
        try:
            with hub_errors(repo, revision):
                return call()
        except HubUnavailable as error:
            now = time.monotonic()
            failures += not error.limited
            ill = None if error.limited else now if ill is None else ill
            wait = (
                error.wait if error.wait is not None else min(given.longest / 60 * 2**attempt, given.longest)
            )
            if error.wait is None:  # many jobs wait for one Hub
                wait *= random.uniform(0.75, 1.0)
            if ill is not None and given.failing is not None:
                over = now + wait > ill + given.failing
            else:
                over = failures >= given.tries or now + wait > begun + given.seconds
            if over:
                raise
            given.tell(f"{str(error).partition(';')[0]}; asked again in {max(1, round(wait))} s")
            _sleep(wait, given.stop)
    raise AssertionError  # the loop has no end


def _sleep(seconds: float, stop: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop()
        time.sleep(min(left, 0.2))


def _client(hooks: dict[str, list[Callable[..., Any]]]) -> httpx2.Client:
    ours: dict[str, list[Callable[..., Any]]] = {
        "request": [*hooks.get("request", []), _limit_time],
        "response": [*hooks.get("response", []), _heed_limit],
    }
    return _Client(event_hooks=ours, follow_redirects=True, timeout=None)  # `_limit_time` sets them


class _Client(httpx2.Client):
    def send(self, *args: Any, **kwargs: Any) -> httpx2.Response:
        """As it is, but for the errors of a network that may be back soon."""
        try:
            return super().send(*args, **kwargs)
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError) as error:
            raise Failing(None) from error


def _limit_time(request: httpx2.Request) -> None:
    """No request without a time limit, also where the client asks for none."""
    given = request.extensions.get("timeout") or {}
    ours = {"connect": CONNECT_S, "read": TRANSFER_S, "write": TRANSFER_S, "pool": TRANSFER_S}
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in ours.items()}


def _heed_limit(response: httpx2.Response) -> None:
    busy = response.status_code == 503 and "retry-after" in response.headers
    if response.status_code == 429 or busy:
        raise SlowDown(_asked_wait(response.headers))
    if response.status_code in _PASSING:
        raise Failing(response.status_code)


def _asked_wait(headers: httpx2.Headers) -> float | None:
    """Seconds from `Retry-After` (a number or a date), or from the Hub's `RateLimit` header."""
    text = (headers.get("retry-after") or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if text:
        try:
            at = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    info = parse_ratelimit_headers(headers)
    return None if info is None else float(info.reset_in_seconds)
