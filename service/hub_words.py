"""What the Hub says, in the user's words: its failures as exceptions of one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
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

from service.settings import signs_in
from tricks import BadInput, TricksmithError

DEFAULT_ENDPOINT = "https://huggingface.co"


class HubUnavailable(BadInput):
    """The Hub cannot be reached or asks to wait: the same request may succeed later.

    `wait` is how many seconds it asks for, None where it does not say.
    """

    def __init__(self, message: str, wait: float | None = None, limited: bool = False) -> None:
        super().__init__(message)
        self.wait, self.limited = wait, limited


class HubUnusable(BadInput):
    """The Hub's answer is not of the form that its client reads, and will not be the next time."""


class HubConflict(BadInput):
    """The repo is not what it was when it was looked at."""


class HubMissing(BadInput):
    """There is no such repo, or none that this token may see."""


class SlowDown(Exception):
    """The Hub answered 429, or 503 with a time; `seconds` is what it asks for."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("the Hub asks to slow down")
        self.seconds = seconds


class Failing(Exception):
    """The Hub answered with a `status` that may pass, or (None) did not answer."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"the Hub fails ({status or 'no answer'})")
        self.status = status


def endpoint() -> str:
    """The Hub's address, read at every call: huggingface_hub itself reads `HF_ENDPOINT` at import only."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions about `repo` into one line that says what is wrong and what to do.

    The client's own text is left out: it spans lines and may carry signed addresses.
    """
    try:
        yield
    except TricksmithError:
        raise
    except (SlowDown, Failing, httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
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
    if isinstance(error, SlowDown):
        return _busy(repo, error.seconds)
    if isinstance(error, Failing):
        return HubUnavailable(_unreachable() if error.status is None else _failed(repo, error.status))
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        return _in_words(error.__cause__, repo, revision)  # a refusal, which the client takes for an absence
    for kinds, words in said:
        if isinstance(error, kinds):
            return words
    if isinstance(error, HfHubHTTPError):
        return _from_status(error.response, repo, revision)
    if isinstance(error, (httpx2.HTTPError, ConnectionError)):
        return HubUnavailable(_unreachable())
    if isinstance(error, (KeyError, TypeError)):
        return HubUnusable(
            f"the Hub at {endpoint()} answers about {repo} in a form that its client does not read;"
            " check HF_ENDPOINT"
        )
    return HubUnavailable(_unusable(repo))  # no JSON, an error page of something in between, say


def gated(repo: str) -> str:
    """What to do about a gated repo, in one line."""
    return (
        f"{repo} is gated and this token has no access;"
        f" accept its terms at {endpoint()}/{repo} and {_prove_it()}"
    )


def _missing(repo: str) -> str:
    which = "with an account" if signs_in() else "to a token"
    return f"{repo} is not on the Hub, or is private; check the id, or {_prove_it()} {which} that may read it"


def _prove_it() -> str:
    return "sign in" if signs_in() else "set HF_TOKEN"


def _unreachable() -> str:
    return f"the Hub at {endpoint()} cannot be reached; check the network, or give a local folder"


def _failed(repo: str, status: int) -> str:
    return f"the Hub failed on {repo} (status {status}); try again later"


def _unusable(repo: str) -> str:
    return f"the Hub at {endpoint()} gave no usable answer about {repo}; try again later"


def _busy(repo: str, seconds: float | None) -> HubUnavailable:
    when = "in a few minutes" if seconds is None else f"in {max(1, round(seconds))} s"
    return HubUnavailable(f"the Hub asks to slow down ({repo}); try again {when}", wait=seconds, limited=True)


_SAID = (
    (re.compile(r"\bdisabled\b|\btaken down\b|legal reasons", re.IGNORECASE), "disabled"),
    (re.compile(r"\bgated\b|\brestricted\b|awaiting a review", re.IGNORECASE), "gated"),
    (re.compile(r"\bquota\b|storage limit|\bno space\b|out of storage", re.IGNORECASE), "full"),
)


def said_in(response: httpx2.Response) -> str:
    """What a refusal says, in its header, its JSON or its text; for matching, not for showing."""
    try:
        body = response.text[:2000]
    except httpx2.HTTPError:  # a stream that was not read
        body = ""
    return f"{response.headers.get('x-error-message', '')} {body}"


def _from_text(said: str, repo: str) -> BadInput | None:
    kind = next((kind for pattern, kind in _SAID if pattern.search(said)), None)
    words = {
        "disabled": f"{repo} is disabled on the Hub; choose another model",
        "gated": gated(repo),
        "full": _full(repo),
    }
    return None if kind is None else BadInput(words[kind])


def _full(repo: str) -> str:
    return f"the Hub has no room for {repo}; free storage, or choose another namespace"


def _from_status(response: httpx2.Response, repo: str, revision: str | None) -> BadInput:
    """Say what an HTTP status without a Hub error code means, by its words where they are plain."""
    status = response.status_code
    if status in (400, 402, 403, 413, 451, 507) and (told := _from_text(said_in(response), repo)) is not None:
        return told
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
        413: BadInput(_full(repo)),
        429: _busy(repo, None),
        410: HubMissing(f"{repo} is gone from the Hub; choose another model"),
        451: BadInput(f"{repo} is disabled on the Hub; choose another model"),
        507: BadInput(_full(repo)),
    }
    if status in said:
        return said[status]
    if status == 408 or (status >= 500 and status != 501):  # 501: it will not do so later either
        return HubUnavailable(_failed(repo, status))
    return BadInput(f"the Hub refuses the request for {repo} (status {status}); check it and try again")
