"""What an operator can set, read once from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tricks import BadInput

_KEY = re.compile(r"[0-9a-fA-F]{64}")
DEFAULT_DATA = Path("~/.local/share/tricksmith")


@dataclass(frozen=True)
class Settings:
    """Where things lie and how patient the service is; times are in seconds."""

    data: Path
    redis_url: str | None = None
    concurrency: int = 1
    lease: float = 30.0
    """A running job whose worker was silent for this long is given to another worker."""
    grace: float = 2.0
    """How long a cancelled child process may take to stop by itself before it is killed."""
    webhook_secret: str | None = field(default=None, repr=False)
    """What the Hub's webhooks send along; without one there is no address for them."""
    token_key: str | None = field(default=None, repr=False)
    """The key (64 hex digits) that seals users' tokens; without one, a key of this data folder's own."""

    @property
    def work(self) -> Path:
        """The folder that holds one work folder per job."""
        return self.data / "work"

    @staticmethod
    def from_env(env: Mapping[str, str] | None = None, data: Path | None = None) -> Settings:
        """Read TRICKSMITH_DATA, _CONCURRENCY, _LEASE (seconds), _WEBHOOK_SECRET, _TOKEN_KEY; REDIS_URL.

        A given `data` wins over its variable.

        Raises:
            BadInput: a variable that does not hold what it should.
        """
        env = os.environ if env is None else env
        folder = data or Path(env.get("TRICKSMITH_DATA") or DEFAULT_DATA)
        count = env.get("TRICKSMITH_CONCURRENCY") or "1"
        if not count.isdecimal() or int(count) < 1:
            raise BadInput(f"TRICKSMITH_CONCURRENCY is {count!r}; give a whole number from 1 on")
        lease = env.get("TRICKSMITH_LEASE") or "30"
        if not lease.isdecimal() or int(lease) < 1:
            raise BadInput(f"TRICKSMITH_LEASE is {lease!r}; give whole seconds from 1 on")
        key = env.get("TRICKSMITH_TOKEN_KEY") or None
        if key is not None and not _KEY.fullmatch(key):
            raise BadInput("TRICKSMITH_TOKEN_KEY is no key; give 64 hex digits (`openssl rand -hex 32`)")
        return Settings(
            data=folder.expanduser().absolute(),
            redis_url=env.get("REDIS_URL") or None,
            concurrency=int(count),
            lease=float(lease),
            token_key=key,
            webhook_secret=env.get("TRICKSMITH_WEBHOOK_SECRET") or None,
        )
