"""What an operator can set, read once from the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from service.limits import Limits
from tricks import BadInput

_KEY = re.compile(r"[0-9a-fA-F]{64}")
DEFAULT_DATA = Path("~/.local/share/tricksmith")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Settings:
    """Where things lie and how patient the service is; times are in seconds, sizes in bytes."""

    data: Path
    redis_url: str | None = field(default=None, repr=False)
    concurrency: int = 1
    lease: float = 30.0
    """A running job whose worker was silent for this long is given to another worker."""
    grace: float = 2.0
    """How long a cancelled child process may take to stop by itself before it is killed."""
    webhook_secret: str | None = field(default=None, repr=False)
    """What the Hub's webhooks send along; without one there is no address for them."""
    token_key: str | None = field(default=None, repr=False)
    """The key (64 hex digits) that seals users' tokens; without one, a key of this data folder's own."""
    time_limit: float = 24 * 3600.0
    """Of one attempt at one job."""
    memory: int = 0
    """Of one job's child process; 0 for its share of this machine's memory."""
    cache: int = 50 * 10**9
    """Of all cached sources of this host; 0 for no cache."""
    large_from: int = 8 * 10**9
    """A source of this size or more is a large job."""
    gpu_from: int = 2 * 10**9
    """A source of this size or more goes to a worker with a GPU, where there is one."""
    long_from: float = 1800.0
    """A job whose evidence is expected to take this long is as a large one, and goes to a GPU too."""
    details: float = 30 * 86400.0
    """For how long a finished job keeps its events, plan, evidence and card."""
    records: float = 365 * 86400.0
    """For how long a finished job is kept at all."""
    failed_work: float = 3 * 86400.0
    """For how long a failed job's work folder is kept for its retry."""
    limits: Limits = field(default_factory=Limits)
    host: str = field(default_factory=socket.gethostname)
    requests_per_second: int = 100
    """Of one address at the web side, after a first burst; 0 for any number."""
    hub_patience: float = 600.0
    """Seconds for which a job asks a Hub again that fails or is away, before it fails itself."""
    metrics_port: int = 0
    """Where a worker serves its health and metrics on all addresses; 0 for nowhere."""
    json_logs: bool = False

    @property
    def work(self) -> Path:
        """The folder that holds one work folder per job."""
        return self.data / "work"

    @property
    def sources(self) -> Path:
        """The folder that holds the cached sources."""
        return self.data / "sources"

    @property
    def task_results(self) -> Path:
        """The folder that holds the sources' answers to tasks, so that each source is asked once."""
        return self.data / "task-results"

    @property
    def gpu_locks(self) -> Path:
        """The folder with one lock file per GPU of this host."""
        return self.data / "gpus"

    @staticmethod
    def from_env(env: Mapping[str, str] | None = None, data: Path | None = None) -> Settings:
        """Read what is set: REDIS_URL, REDIS_PASSWORD_FILE and the TRICKSMITH_... variables (see README).

        A given `data` wins over its variable.

        Raises:
            BadInput: a variable that does not hold what it should.
        """
        env = os.environ if env is None else env
        read = _Reader(env)
        folder = data or Path(env.get("TRICKSMITH_DATA") or DEFAULT_DATA)
        key = read.secret("TOKEN_KEY")
        if key is not None and not _KEY.fullmatch(key):
            raise BadInput("TRICKSMITH_TOKEN_KEY is no key; give 64 hex digits (`openssl rand -hex 32`)")
        limits = Limits(
            user_waiting=read.count("USER_WAITING", 0, least=0),
            all_waiting=read.count("ALL_WAITING", 0, least=0),
            user_running=read.count("USER_RUNNING", 0, least=0),
            user_bytes=read.size("USER_BYTES_PER_DAY", 0),
            model_bytes=read.size("MODEL_BYTES", 0),
            user_jobs=read.count("USER_JOBS_PER_DAY", 0, least=0),
        )
        return Settings(
            data=folder.expanduser().absolute(),
            redis_url=_redis_url(env),
            concurrency=read.count("CONCURRENCY", 1),
            lease=float(read.count("LEASE", 30, unit="whole seconds")),
            time_limit=3600.0 * read.count("TIME_LIMIT_HOURS", 24),
            memory=read.size("MEMORY", 0),
            hub_patience=float(read.count("HUB_PATIENCE", 600, unit="whole seconds")),
            cache=read.size("SOURCE_CACHE", Settings.cache),
            large_from=read.size("LARGE_FROM", Settings.large_from),
            gpu_from=read.size("GPU_FROM", Settings.gpu_from),
            long_from=60.0 * read.count("LONG_FROM_MINUTES", 30),
            details=86400.0 * read.count("KEEP_DETAILS_DAYS", 30, least=0),
            records=86400.0 * read.count("KEEP_JOBS_DAYS", 365),
            failed_work=3600.0 * read.count("KEEP_FAILED_HOURS", 72, least=0),
            limits=limits,
            host=env.get("TRICKSMITH_HOST") or socket.gethostname(),
            requests_per_second=read.count("REQUESTS_PER_SECOND", 100, least=0),
            metrics_port=read.count("METRICS_PORT", 0, least=0),
            json_logs=read.one_of("LOG", ("text", "json")) == "json",
            token_key=key,
            webhook_secret=read.secret("WEBHOOK_SECRET"),
        )


class _Reader:
    """Reads TRICKSMITH_... variables, and says which is wrong."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def count(self, name: str, default: int, *, least: int = 1, unit: str = "a whole number") -> int:
        text = self._env.get(f"TRICKSMITH_{name}") or str(default)
        if not text.isdecimal() or int(text) < least:
            raise BadInput(f"TRICKSMITH_{name} is {text!r}; give {unit} from {least} on")
        return int(text)

    def secret(self, name: str) -> str | None:
        """A secret, itself or in the file that the variable with `_FILE` names; an empty one is none."""
        path = self._env.get(f"TRICKSMITH_{name}_FILE")
        text = _read(path, f"TRICKSMITH_{name}_FILE") if path else self._env.get(f"TRICKSMITH_{name}")
        return text or None

    def one_of(self, name: str, words: tuple[str, ...]) -> str:
        """One of `words`; the first where nothing is said."""
        text = self._env.get(f"TRICKSMITH_{name}") or words[0]
        if text not in words:
            raise BadInput(f"TRICKSMITH_{name} is {text!r}; write {' or '.join(words)}")
        return text

    def size(self, name: str, default: int) -> int:
        text = self._env.get(f"TRICKSMITH_{name}") or str(default)
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"TRICKSMITH_{name} is {text!r}; give bytes, such as 500MB or 40GB, or 0")
        return int(float(match[1]) * _UNITS[match[2]])


def signs_in() -> bool:
    """Whether visitors sign in here with Hugging Face: a Space with OAuth sets this."""
    return bool(os.environ.get("OAUTH_CLIENT_ID"))


def _redis_url(env: Mapping[str, str]) -> str | None:
    """REDIS_URL, with the password from REDIS_PASSWORD_FILE where that is set."""
    url, secret = env.get("REDIS_URL") or None, env.get("REDIS_PASSWORD_FILE")
    if url is None or not secret:
        return url
    password = _read(secret, "REDIS_PASSWORD_FILE")
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise BadInput("REDIS_PASSWORD_FILE goes with a REDIS_URL that begins with redis:// or rediss://")
    address = f"{quote(parts.username or '')}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=address))


def _read(path: str, name: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise BadInput(
            f"{name} cannot be read ({error.strerror}): {path}; correct its path or its rights"
        ) from error
