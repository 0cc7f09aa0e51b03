"""The Hub's client: with time limits and with patience; its failures are in `hub_words`.

Nothing here keeps a token: `None` means the one that huggingface_hub itself finds (environment or login).

How it waits: the client is made by our factory (huggingface_hub's documented way to set one) with the hooks
of huggingface_hub's own. It gives every request a time limit, and turns an answer that asks to wait into
`SlowDown` before the client's own retries would sleep on it, deaf to a cancelled job. `ask` does the waiting:
as long as the Hub asks for, within the `patience` of whoever called.
"""

from __future__ import annotations

import email.utils
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, get_session, set_client_factory
from huggingface_hub.utils import disable_progress_bars, logging, parse_ratelimit_headers

from service.hub_words import (
    DEFAULT_ENDPOINT,
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
"""How long in all a job's stage waits for a Hub that asks to slow down, or fails."""
TRANSFER_S = 120.0
"""How long an upload, a download or a commit may stand still."""

# ASCII only: look-alike letters of other alphabets name another repo, or none.
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Patience:
    """How long to wait for the Hub in all (seconds), how often to try what failed, and whether to stop."""

    seconds: float = 15.0
    tries: int = 2
    stop: Callable[[], None] = lambda: None


_PATIENCE: ContextVar[Patience] = ContextVar("patience", default=Patience())  # noqa: B039 (it is frozen)
_FACTORY = threading.Lock()
_made = False


@contextmanager
def patience(seconds: float, tries: int = 6, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block, `ask` waits for a busy or failing Hub for `seconds`; `stop` may raise to end that."""
    token = _PATIENCE.set(Patience(seconds, tries, stop))
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
    end = time.monotonic() + given.seconds
    failures = 0
    for attempt in itertools.count():
        try:
            with hub_errors(repo, revision):
                return call()
        except HubUnavailable as error:
            failures += not error.limited
            wait = error.wait if error.wait is not None else min(0.5 * 2**attempt, 30.0)
            if failures >= given.tries or time.monotonic() + wait > end:
                raise
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
    return httpx2.Client(event_hooks=ours, follow_redirects=True, timeout=None)  # `_limit_time` sets them


def _limit_time(request: httpx2.Request) -> None:
    """No request without a time limit, also where the client asks for none."""
    given = request.extensions.get("timeout") or {}
    ours = {"connect": CONNECT_S, "read": TRANSFER_S, "write": TRANSFER_S, "pool": TRANSFER_S}
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in ours.items()}


def _heed_limit(response: httpx2.Response) -> None:
    busy = response.status_code == 503 and "retry-after" in response.headers
    if response.status_code == 429 or busy:
        raise SlowDown(_asked_wait(response.headers))


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
