"""A user's own Hub token: checked to be narrow, kept encrypted with its job, and gone when that ends.

The token that an operator gives Tricksmith stands in the environment, or in huggingface_hub's own login, and
never passes here. A visitor's sign-in does: it is sealed with AES-GCM under a key that Redis does not know,
bound to its job's id, and expires in Redis when it expires on the Hub. Only the worker's network stages open
it; the process that parses a source's weights has neither the key nor the way to Redis.
"""

from __future__ import annotations

import os
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.jobs import PREFIX, Job
from service.settings import Settings
from tricks import BadInput

NEEDED = frozenset({"contribute-repos"})
"""Create repos, and touch only those that were created so."""
WANTED = NEEDED | {"gated-repos"}
IDENTITY = frozenset({"openid", "profile"})
"""Who signs in: no right to do anything."""
SHORTEST_S = 600.0
"""A sign-in that ends sooner would end before its job."""

_NONCE = 12  # bytes


@dataclass(frozen=True)
class Grant:
    """A visitor's sign-in: the token, when it expires (unix seconds), and the scopes that it was given."""

    token: str = field(repr=False)
    expires: float
    scopes: frozenset[str]

    @property
    def lasts(self) -> bool:
        """Whether it will outlive a job."""
        return self.expires - time.time() >= SHORTEST_S

    @staticmethod
    def of(token: str, expires: float, scope: str | Iterable[str]) -> Grant:
        """From OAuth's `access_token`, `expires_at` and `scope` (a list, or one text with spaces).

        A page hands the result to `Service.submit(grant=...)` and keeps nothing itself. The session it comes
        from must be the Hub's own answer, checked by the library that signed the visitor in: what scopes a
        token has, the Hub says nowhere else.
        """
        return Grant(token, expires, frozenset(scope.split() if isinstance(scope, str) else scope))


def check_grant(grant: Grant, *, pr: bool = False) -> None:
    """Refuse a sign-in that may do more than Tricksmith needs, or too little, or not for long enough.

    Raises:
        BadInput: which it is, and what to do.
    """
    asked = " and ".join(sorted(WANTED))
    wider = grant.scopes - WANTED - IDENTITY
    if wider:
        raise BadInput(
            f"this sign-in may do more than Tricksmith should ({', '.join(sorted(wider))});"
            f" sign in again and grant {asked} alone"
        )
    if not grant.scopes >= NEEDED:
        raise BadInput(f"this sign-in may not create repos; sign in again and grant {asked}")
    if not grant.lasts:
        raise BadInput("this sign-in has expired, or is about to; sign in again")
    if pr:
        raise BadInput("a sign-in may not open pull requests elsewhere; publish to a new repo instead")


class Vault:
    """The sealed tokens of one service."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._redis: Any = redis.Redis.from_url(url)
        self._settings = settings

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def keep(self, job_id: str, grant: Grant) -> None:
        """Seal the token for this job, until it expires."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = nonce + AESGCM(self._key()).encrypt(nonce, grant.token.encode(), job_id.encode())
        self._redis.set(_name(job_id), b64encode(sealed), exat=int(grant.expires))

    def token(self, job: Job) -> str | None:
        """The token with which `job` asks the Hub: its user's, or None for the operator's.

        Raises:
            BadInput: the user's has expired, or cannot be opened here. It is never replaced by another.
        """
        if job.user is None or job.operator_token:
            return None
        sealed = self._redis.get(_name(job.id))
        if sealed is None:
            raise BadInput(f"the sign-in of {job.user} for this job has expired; sign in and submit again")
        data = b64decode(sealed)
        try:
            return AESGCM(self._key()).decrypt(data[:_NONCE], data[_NONCE:], job.id.encode()).decode()
        except InvalidTag as error:
            raise BadInput(
                "this machine cannot open the job's sign-in; give every machine the same TRICKSMITH_TOKEN_KEY"
            ) from error

    def forget(self, job_id: str) -> None:
        """The job needs its token no more."""
        self._redis.delete(_name(job_id))

    def _key(self) -> bytes:
        """32 bytes: from the operator, or made once and kept beside the data, for the owner's eyes alone."""
        if self._settings.token_key is not None:
            return bytes.fromhex(self._settings.token_key)
        path = self._settings.data / "token.key"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return _make(path)
        except FileExistsError:
            return path.read_bytes()


def _make(path: Path) -> bytes:
    """A new key, which appears whole or not at all.

    Raises:
        FileExistsError: there is one.
    """
    if path.exists():
        raise FileExistsError(path)
    key = secrets.token_bytes(32)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key)
        os.link(partial, path)  # fails where another process was faster
    finally:
        partial.unlink()
    return key


def _name(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}:token"
