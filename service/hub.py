"""The Hub's client: with time limits, with patience, and with its failures in the user's words.

Nothing here keeps a token: `None` means the one that huggingface_hub itself finds (environment or login).

How it waits: the client is made by our factory (huggingface_hub's documented way to set one), which gives
every request a time limit, and turns an answer 429 into `_SlowDown` before the client's own retries would
sleep on it, deaf to a cancelled job. `ask` does the waiting: as long as the Hub asks for, within the
`patience` of whoever called.
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
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from tricks import BadInput, TricksmithError

T = TypeVar("T")

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30.0
"""What a question about metadata may take."""
CONNECT_S = 10.0
LONG_S = 1800.0
"""How long in all a job's stage waits for a Hub that asks to slow down, or fails."""
TRANSFER_S = 120.0
"""How long an upload, a download or a commit may stand still."""

# ASCII only: look-alike letters of other alphabets name another repo, or none.
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


class HubUnavailable(BadInput):
    """The Hub cannot be reached or asks to wait: the same request may succeed later.

    `wait` is how many seconds it asks for, None where it does not say.
    """

    def __init__(self, message: str, wait: float | None = None, limited: bool = False) -> None:
        super().__init__(message)
        self.wait, self.limited = wait, limited


class HubConflict(BadInput):
    """The repo is not what it was when it was looked at."""


class HubMissing(BadInput):
    """There is no such repo, or none that this token may see."""


class _SlowDown(Exception):
    """The Hub answered 429; `seconds` is what it asks for."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("the Hub asks to slow down")
        self.seconds = seconds


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


def endpoint() -> str:
    """The Hub's address, read at every call: huggingface_hub itself reads `HF_ENDPOINT` at import only."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT


def hub(token: str | bool | None = None) -> HfApi:
    """The client for `endpoint()`."""
    global _made
    with _FACTORY:
        if not _made:
            set_client_factory(_client)
            disable_progress_bars()  # ours are on stderr already, or there is no terminal
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


def _client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _limit_time],
        "response": [*hooks.get("response", []), _heed_limit],
    }
    return client


def _limit_time(request: httpx2.Request) -> None:
    """No request without a time limit, also where the client asks for none."""
    given = request.extensions.get("timeout") or {}
    ours = {"connect": CONNECT_S, "read": TRANSFER_S, "write": TRANSFER_S, "pool": TRANSFER_S}
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in ours.items()}


def _heed_limit(response: httpx2.Response) -> None:
    if response.status_code == 429:
        raise _SlowDown(_asked_wait(response.headers))


def _asked_wait(headers: httpx2.Headers) -> float | None:
    """Seconds from `Retry-After` (a number or a date), or from the Hub's `RateLimit` header."""
    text = (headers.get("retry-after") or "").strip()
    if text.isdecimal():
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


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions about `repo` into one line that says what is wrong and what to do.

    The client's own text is left out: it spans lines and may carry signed addresses.
    """
    try:
        yield
    except TricksmithError:
        raise
    except (_SlowDown, httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk's trouble, not the Hub's
        raise _in_words(error, repo, revision) from error


def _in_words(error: Exception, repo: str, revision: str | None) -> BadInput:
    """What an exception of the client means; the first kind that fits (some are kinds of others)."""
    where = f"see its branches and tags at {endpoint()}/{repo}/tree/main"
    gone = f"a file of {repo} is gone from the Hub; try again, or choose another revision"
    said: list[tuple[type[Exception] | tuple[type[Exception], ...], BadInput]] = [
        (GatedRepoError, BadInput(gated(repo))),
        (DisabledRepoError, BadInput(f"{repo} is disabled on the Hub; choose another model")),
        (RevisionNotFoundError, BadInput(f"{repo} has no revision {revision!r}; {where}")),
        (RepositoryNotFoundError, HubMissing(_missing(repo))),
        (LocalTokenNotFoundError, BadInput("no Hub token found; set HF_TOKEN or run 'hf auth login'")),
        ((LocalEntryNotFoundError, OfflineModeIsEnabled), HubUnavailable(_unreachable())),
        (EntryNotFoundError, BadInput(gone)),
        (HFValidationError, BadInput(f"{repo!r} is not a Hub id; write namespace/name")),
    ]
    if isinstance(error, _SlowDown):
        return _busy(repo, error.seconds)
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        return _in_words(error.__cause__, repo, revision)  # a refusal, which the client takes for an absence
    for kinds, words in said:
        if isinstance(error, kinds):
            return words
    if isinstance(error, HfHubHTTPError):
        return _from_status(error.response, repo, revision)
    if isinstance(error, (httpx2.HTTPError, ConnectionError)):
        return HubUnavailable(_unreachable())
    return HubUnavailable(_unusable(repo))  # a reply that is not JSON, or not of the Hub's form


def gated(repo: str) -> str:
    """What to do about a gated repo, in one line."""
    return (
        f"{repo} is gated and this token has no access;"
        f" accept its terms at {endpoint()}/{repo} and set HF_TOKEN"
    )


def _missing(repo: str) -> str:
    return (
        f"{repo} is not on the Hub, or is private; check the id, or set HF_TOKEN to a token that may read it"
    )


def _unreachable() -> str:
    return f"the Hub at {endpoint()} cannot be reached; check the network, or give a local folder"


def _unusable(repo: str) -> str:
    return f"the Hub at {endpoint()} gave no usable answer about {repo}; try again later"


def _busy(repo: str, seconds: float | None) -> HubUnavailable:
    when = "in a few minutes" if seconds is None else f"in {max(1, round(seconds))} s"
    return HubUnavailable(f"the Hub asks to slow down ({repo}); try again {when}", wait=seconds, limited=True)


def _from_status(response: httpx2.Response, repo: str, revision: str | None) -> BadInput:
    """Say what an HTTP status without a Hub error code means."""
    status = response.status_code
    if status == 401 and "authorization" not in response.request.headers:
        return HubMissing(_missing(repo))  # to strangers, what is private and what is not there look the same
    if status == 404 and revision is not None:
        return HubMissing(f"{repo} or its revision {revision!r} is not on the Hub, or is private; check both")
    said: dict[int, BadInput] = {
        401: BadInput(
            f"the Hub does not accept this token for {repo}; check HF_TOKEN or run 'hf auth login'"
        ),
        402: BadInput(f"the Hub asks for a paid plan for {repo}; free storage, or choose another namespace"),
        403: BadInput(f"this token may not do that with {repo}; use one with the right to"),
        404: HubMissing(_missing(repo)),
        409: HubConflict(f"{repo} was changed by somebody else meanwhile; look at it, then try again"),
        412: HubConflict(f"{repo} moved to another commit meanwhile; look at it, then try again"),
        413: BadInput(f"the Hub has no room for {repo}; free storage, or choose another namespace"),
        429: _busy(repo, None),
        507: BadInput(f"the Hub has no room for {repo}; free storage, or choose another namespace"),
    }
    if status in said:
        return said[status]
    if status >= 500 or status == 408:
        return HubUnavailable(f"the Hub failed on {repo} (status {status}); try again later")
    return BadInput(f"the Hub refuses the request for {repo} (status {status}); check it and try again")
