"""The Hub's client and its failures in the user's words.

Nothing here keeps a token: `None` means the one that huggingface_hub itself finds (environment or login).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi
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

from tricks import BadInput

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30.0

# ASCII only: look-alike letters of other alphabets name another repo, or none.
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


class HubUnavailable(BadInput):
    """The Hub cannot be reached or asks to wait: the same request may succeed later."""


def endpoint() -> str:
    """The Hub's address, read at every call: huggingface_hub itself reads `HF_ENDPOINT` at import only."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT


def hub(token: str | None = None) -> HfApi:
    """The client for `endpoint()`."""
    return HfApi(endpoint=endpoint(), token=token, library_name="tricksmith")


def is_hub_id(text: str) -> bool:
    """Whether `text` is written as `namespace/name` (or an old one-word id) in the Hub's alphabet."""
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions about `repo` into one line that says what is wrong and what to do.

    The client's own text is left out: it spans lines and may carry signed addresses.
    """
    try:
        yield
    except GatedRepoError as error:
        raise BadInput(
            f"{repo} is gated and this token has no access;"
            f" accept its terms at {endpoint()}/{repo} and set HF_TOKEN"
        ) from error
    except DisabledRepoError as error:
        raise BadInput(f"{repo} is disabled on the Hub; choose another model") from error
    except RevisionNotFoundError as error:
        raise BadInput(
            f"{repo} has no revision {revision!r}; see its branches and tags at {endpoint()}/{repo}/tree/main"
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInput(_missing(repo)) from error
    except LocalTokenNotFoundError as error:
        raise BadInput("no Hub token found; set HF_TOKEN or run 'hf auth login'") from error
    except (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    ) as error:  # an EntryNotFoundError too: keep it above
        raise HubUnavailable(_unreachable()) from error
    except EntryNotFoundError as error:
        raise BadInput(
            f"a file of {repo} is gone from the Hub; try again, or choose another revision"
        ) from error
    except HFValidationError as error:
        raise BadInput(f"{repo!r} is not a Hub id; write namespace/name") from error
    except HfHubHTTPError as error:
        raise _from_status(error.response.status_code, repo) from error
    except ValueError as error:  # the client's own checks of a reply, and replies that are not JSON
        raise HubUnavailable(
            f"the Hub at {endpoint()} gave no usable answer about {repo}; try again later"
        ) from error
    except httpx2.HTTPError as error:
        raise HubUnavailable(_unreachable()) from error


def _missing(repo: str) -> str:
    return (
        f"{repo} is not on the Hub, or is private; check the id, or set HF_TOKEN to a token that may read it"
    )


def _unreachable() -> str:
    return f"the Hub at {endpoint()} cannot be reached; check the network, or give a local folder"


def _unusable(repo: str) -> str:
    return f"the Hub at {endpoint()} gave no usable answer about {repo}; try again later"


def _from_status(status: int, repo: str) -> BadInput:
    """Say what an HTTP status without a Hub error code means."""
    if status == 401:
        return BadInput(
            f"the Hub does not accept this token for {repo}; check HF_TOKEN or run 'hf auth login'"
        )
    if status == 403:
        return BadInput(f"this token may not do that with {repo}; use one with the right to")
    if status == 404:
        return BadInput(_missing(repo))
    if status == 409:
        return BadInput(f"{repo} was changed by somebody else meanwhile; look at it, then try again")
    if status == 412:
        return BadInput(f"{repo} moved to another commit meanwhile; look at it, then try again")
    if status == 429:
        return HubUnavailable(f"the Hub asks to slow down ({repo}); try again in a few minutes")
    if status >= 500:
        return HubUnavailable(f"the Hub failed on {repo} (status {status}); try again later")
    return BadInput(f"the Hub refuses the request for {repo} (status {status}); check it and try again")
