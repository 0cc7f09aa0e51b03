"""`tricksmith doctor`: looks at a deployment, and says what to change."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

from service.hub import endpoint, hub, hub_errors
from service.jobs import SCHEMA
from service.lanes import Queue
from service.redis_server import running_redis
from service.registry import Registry
from service.settings import Settings
from tricks import TricksmithError

SKEW = 30.0  # seconds by which two clocks may differ
LEAST_FREE = 10 * 10**9  # bytes
LEAST_FILES = 1024


class Level(StrEnum):
    """How bad it is."""

    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and what to change where it is not good."""

    what: str
    level: Level
    text: str
    change: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything; each finding as it comes."""
    yield from _guarded("data folder", lambda: _disk(settings))
    yield from _guarded("limits", lambda: _process_limits())
    try:
        with running_redis(settings) as url:
            yield from _guarded("Redis", lambda: _redis(settings, url))
            yield from _guarded("workers", lambda: _workers(settings, url))
    except TricksmithError as error:
        yield Finding("Redis", Level.BAD, str(error), "start it, or correct REDIS_URL")
    yield from _guarded("GPU", _gpu)
    yield from _guarded("Hub", _hub)


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 (the other things are looked at still)
        text = str(error) if isinstance(error, TricksmithError) else type(error).__name__
        yield Finding(what, Level.BAD, f"could not be looked at: {text}", "put that right and look again")


def _disk(settings: Settings) -> Iterator[Finding]:
    data = settings.data
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        (Path(folder) / "probe").write_text("x")
    free = shutil.disk_usage(data).free
    text = f"{data}: {free / 1e9:.0f} GB free"
    if free < LEAST_FREE:
        yield Finding("disk", Level.BAD, text, "free some space, or set TRICKSMITH_DATA to a larger disk")
    elif free < settings.cache:
        change = f"lower TRICKSMITH_SOURCE_CACHE (now {settings.cache / 1e9:.0f} GB), or use a larger disk"
        yield Finding("disk", Level.NOTE, text, change)
    else:
        yield Finding("disk", Level.GOOD, text)
    if data.stat().st_mode & 0o007:
        yield Finding("rights", Level.NOTE, f"{data} is open to other users", f"chmod o-rwx {data}")


def _process_limits() -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < LEAST_FILES:
        yield Finding("open files", Level.NOTE, f"at most {files}", f"ulimit -n {4 * LEAST_FILES}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield Finding("user", Level.NOTE, "this runs as root", "run it as a user of its own")


def _redis(settings: Settings, url: str) -> Iterator[Finding]:
    with closing(redis.Redis.from_url(url, decode_responses=True, socket_timeout=10)) as client:
        info: dict[str, Any] = client.info()
        yield Finding("Redis", Level.GOOD, f"version {info['redis_version']} answers")
        if not info.get("aof_enabled"):
            change = "CONFIG SET appendonly yes, and write it into redis.conf"
            yield Finding("Redis persistence", Level.BAD, "no append-only file: a restart loses jobs", change)
        elif info.get("aof_last_write_status") != "ok":
            change = "free space on the disk of Redis"
            yield Finding("Redis persistence", Level.BAD, "the last write to its file failed", change)
        else:
            yield Finding("Redis persistence", Level.GOOD, "append-only file")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            change = "CONFIG SET maxmemory-policy noeviction, and write it into redis.conf"
            yield Finding("Redis eviction", Level.BAD, f"{policy}: it may throw jobs away", change)
        else:
            yield Finding("Redis eviction", Level.GOOD, policy)
        limit, used = info.get("maxmemory", 0), info.get("used_memory", 0)
        if limit and used > 0.8 * limit:
            change = "give it more memory, or lower TRICKSMITH_KEEP_DETAILS_DAYS"
            yield Finding("Redis memory", Level.NOTE, f"{used / 1e6:.0f} of {limit / 1e6:.0f} MB", change)
        seconds, micro = client.time()
        yield _clock("Redis", seconds + micro / 1e6)
    yield from _address(settings)
    yield from _key(settings)


def _address(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        yield Finding("Redis address", Level.GOOD, "embedded, on a private socket")
        return
    parts = urlsplit(settings.redis_url)
    near = parts.scheme == "unix" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not near and not parts.password:
        change = "set a password (requirepass) and give it by REDIS_PASSWORD_FILE"
        yield Finding("Redis password", Level.BAD, "none, and Redis is on another machine", change)
    if parts.scheme == "rediss" and "none" in parse_qs(parts.query).get("ssl_cert_reqs", []):
        change = "leave out ssl_cert_reqs=none, and name the authority's file: ssl_ca_certs=FILE"
        text = "encrypted, but anybody may pose as Redis: its certificate is not checked"
        yield Finding("Redis TLS", Level.BAD, text, change)
    elif parts.scheme == "rediss":
        yield Finding("Redis TLS", Level.GOOD, "encrypted, and the certificate is checked")
    elif not near:
        change = "use TLS (rediss://), or a network that nobody else is on"
        yield Finding("Redis TLS", Level.NOTE, "what goes to Redis is not encrypted", change)


def _key(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is not None and settings.token_key is None:
        text = "each data folder has its own: workers elsewhere cannot use what visitors have signed in with"
        change = "give all processes one TRICKSMITH_TOKEN_KEY (`openssl rand -hex 32`)"
        yield Finding("key of tokens", Level.NOTE, text, change)


def _clock(whose: str, theirs: float) -> Finding:
    skew = theirs - time.time()
    text = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'before'} that of {whose}"
    if abs(skew) > SKEW:
        return Finding("clock", Level.BAD, text, "run a time service (chrony, systemd-timesyncd)")
    return Finding("clock", Level.GOOD, f"agrees with that of {whose}")


def _workers(settings: Settings, url: str) -> Iterator[Finding]:
    with closing(Registry(url)) as registry:
        workers, starting = registry.workers(), registry.starting()
    if not workers and starting:
        yield Finding("workers", Level.NOTE, "the first one is starting", "look again in a minute")
        return
    if not workers:
        yield Finding("workers", Level.BAD, "none lives", "start `tricksmith worker` or `tricksmith serve`")
        return
    places = sum(about.places for about in workers)
    hosts = len({about.host for about in workers})
    yield Finding("workers", Level.GOOD, f"{len(workers)}, hosts: {hosts}, jobs at a time: {places}")
    schemas = {about.schema for about in workers}
    if schemas != {SCHEMA}:
        text = f"they keep job records of schema {sorted(schemas)}, this is {SCHEMA}"
        yield Finding("versions", Level.NOTE, text, "finish the upgrade: restart the older ones")
    if not any(Queue.CPU in about.queues for about in workers):
        change = "start `tricksmith worker --queue cpu`"
        yield Finding("queues", Level.BAD, "nobody works off the cpu queue", change)
    for about in workers:
        if about.disk_free < LEAST_FREE:
            text = f"{about.host} has {about.disk_free / 1e9:.1f} GB free"
            yield Finding("disk", Level.BAD, text, "free some space there")


def _gpu() -> Iterator[Finding]:
    names = shutil.which("nvidia-smi") is not None
    import torch

    built = torch.backends.cuda.is_built()
    if names and not built:
        change = "install PyPI's torch (in Docker: PIP_FLAGS empty)"
        yield Finding("GPU", Level.BAD, "this machine has a GPU and this torch cannot use it", change)
    elif names and not torch.cuda.is_available():
        yield Finding("GPU", Level.BAD, "torch finds no usable GPU", "check the driver with nvidia-smi")
    elif names:
        yield Finding("GPU", Level.GOOD, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    else:
        yield Finding("GPU", Level.NOTE, "none here", "large models are verified on the CPU, slowly")


def _hub() -> Iterator[Finding]:
    api = hub()
    try:
        with hub_errors("the token"):
            me = api.whoami()
    except TricksmithError as error:
        yield Finding("Hub token", Level.NOTE, str(error), "without one nothing is published to the Hub")
    else:
        yield _token(me)
    import httpx2

    try:
        answer = httpx2.head(endpoint(), timeout=10, follow_redirects=True)
    except httpx2.HTTPError as error:
        text = f"{endpoint()} does not answer ({type(error).__name__})"
        yield Finding("Hub", Level.BAD, text, "check the network, HTTPS_PROXY and HF_ENDPOINT")
        return
    if (date := answer.headers.get("date")) is not None:
        yield _clock("the Hub", parsedate_to_datetime(date).astimezone(UTC).timestamp())


def _token(me: dict[str, Any]) -> Finding:
    token = me.get("auth", {}).get("accessToken", {})
    role, name = token.get("role"), me.get("name")
    if role == "read":
        return Finding("Hub token", Level.BAD, f"{name}'s, may only read", "make one that may write repos")
    if role == "write":
        change = "make a fine-grained one that may write only to the namespaces you publish to"
        return Finding("Hub token", Level.NOTE, f"{name}'s, may write everything of theirs", change)
    return Finding("Hub token", Level.GOOD, f"{name}'s, {role}")
