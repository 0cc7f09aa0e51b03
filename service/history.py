"""The memory of a service whose disk does not last: all it knows, kept elsewhere as one file.

A Hub Space loses its disk whenever it restarts. Its Redis then is restored, before anything else asks it,
from the file that was kept last: by a folder that lasts (a bucket, mounted), or by a private dataset on the
Hub. The file holds every key of ours as Redis dumps it, taken in one moment by one script, so that all of
them agree. Left out are the queue's messages and the workers, which are made anew, and, where the file goes
to a dataset, whose history keeps everything, the sealed sign-ins.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import redis
from huggingface_hub import CommitOperationAdd

from service.hub import HubMissing, ask, hub, patience
from service.jobs import PREFIX
from service.upload import in_memory
from tricks import BadInput, TricksmithError

FORMAT = 1
KEPT_FILES = 2
"""Of a folder: the newest, and the one before it in case the newest is half written."""
FILE = "history.jsonl.gz"
_PATIENCE_S = 120.0

log = logging.getLogger(__name__)

_DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('PTTL', key)
  found[#found + 1] = redis.call('DUMP', key)
end
return found
"""


class Keeper(Protocol):
    """Where the file lies."""

    @property
    def sign_ins(self) -> bool:
        """Whether what it once held can be gone for good."""

    @property
    def every(self) -> float:
        """How often to look whether there is something to keep (seconds)."""

    def load(self) -> Iterator[bytes]:
        """What was kept, newest first; raises TricksmithError where that cannot be known now."""

    def save(self, data: bytes) -> None:
        """Keep it."""


@dataclass(frozen=True)
class FolderKeeper:
    """A folder on a disk that lasts. Each file is written once: no bucket need rename or write over."""

    folder: Path
    sign_ins: bool = True
    every: float = 15.0

    def load(self) -> Iterator[bytes]:
        """See Keeper."""
        for file in self._files():
            yield file.read_bytes()

    def save(self, data: bytes) -> None:
        """See Keeper."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{time.time_ns():020}-{FILE}").write_bytes(data)
        for old in self._files()[KEPT_FILES:]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*-{FILE}"), reverse=True)


@dataclass(frozen=True)
class DatasetKeeper:
    """A private dataset on the Hub; `token` may write there."""

    repo: str
    token: str
    sign_ins: bool = False
    every: float = 300.0

    def load(self) -> Iterator[bytes]:
        """See Keeper."""
        with patience(_PATIENCE_S):
            try:
                info = ask(self.repo, lambda: hub(self.token).dataset_info(self.repo))
            except HubMissing:
                return
            if not info.private:
                raise BadInput(f"the dataset {self.repo} is public, and jobs may be private; make it private")
            if not any(file.rfilename == FILE for file in info.siblings or []):
                return
            with tempfile.TemporaryDirectory(prefix="tricksmith-") as folder:
                path = ask(
                    self.repo,
                    lambda: hub(self.token).hf_hub_download(
                        self.repo, FILE, repo_type="dataset", revision=info.sha, local_dir=folder
                    ),
                )
                yield Path(path).read_bytes()

    def save(self, data: bytes) -> None:
        """See Keeper."""
        try:
            self._commit(data)
        except HubMissing:
            api = hub(self.token)
            ask(self.repo, lambda: api.create_repo(self.repo, repo_type="dataset", private=True))
            self._commit(data)

    def _commit(self, data: bytes) -> None:
        file, message = CommitOperationAdd(FILE, in_memory(data)), "Jobs of a Tricksmith Space"
        api = hub(self.token)
        ask(
            self.repo,
            lambda: api.create_commit(self.repo, [file], commit_message=message, repo_type="dataset"),
        )


class History:
    """What one Redis knows, and where that is kept."""

    def __init__(self, url: str, keeper: Keeper) -> None:
        self._redis: Any = redis.Redis.from_url(url)
        self._keeper = keeper
        self._kept: str | None = None

    def restore(self) -> int:
        """Fill a Redis that knows nothing; how many keys there were.

        Raises:
            TricksmithError: what was kept cannot be read. It must not be written over then.
        """
        if self._redis.exists(PREFIX + "jobs"):
            return 0
        broken = 0
        for data in self._keeper.load():
            try:
                rows = _unpacked(data)
            except (OSError, EOFError, ValueError, KeyError):
                broken += 1
                continue
            return self._fill(rows)
        if broken:
            raise TricksmithError(
                "what this Space kept of its jobs cannot be read; look at it, or move it away"
            )
        return 0

    def _fill(self, rows: list[tuple[str, int | None, bytes]]) -> int:
        now = time.time_ns() // 10**6
        alive = [(key, ends, dump) for key, ends, dump in rows if ends is None or ends > now]
        with self._redis.pipeline(transaction=True) as pipe:
            for key, ends, dump in alive:
                pipe.restore(key, ends or 0, dump, absttl=ends is not None, replace=True)
            pipe.execute()
        return len(alive)

    def save(self) -> bool:
        """Keep what changed since the last time; whether anything had.

        Raises:
            TricksmithError, OSError: it could not be kept.
        """
        now = time.time_ns() // 10**6
        found: list[Any] = self._redis.eval(_DUMP, 0, PREFIX)
        rows = [
            (key.decode(), None if ttl < 0 else now + ttl, dump)
            for key, ttl, dump in zip(found[::3], found[1::3], found[2::3], strict=True)
            if dump is not None and self._lasts(key.decode())
        ]
        rows.sort()
        digest = hashlib.sha256(b"".join(key.encode() + dump for key, _, dump in rows)).hexdigest()
        if digest == self._kept:
            return False
        if rows or self._kept is not None:
            self._keeper.save(_packed(rows))
        self._kept = digest
        return True

    def _lasts(self, key: str) -> bool:
        name = key.removeprefix(PREFIX)
        if name.startswith(("celery:", "worker", "taken:", "rate:")) or name == "writable":
            return False
        return self._keeper.sign_ins or not (name.startswith("job:") and name.endswith(":token"))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what changes for as long as the block runs, and once more at its end."""
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=[over], name="history", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._try()
            self._redis.close()

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(self._keeper.every):
            self._try()

    def _try(self) -> None:
        try:
            self.save()
        except (TricksmithError, OSError, redis.RedisError) as error:
            log.error("the jobs could not be kept (%s); tried again soon", error)


def _packed(rows: list[tuple[str, int | None, bytes]]) -> bytes:
    lines = [json.dumps({"format": FORMAT, "rows": len(rows)})]
    lines += [json.dumps({"key": k, "ends": e, "dump": b64encode(d).decode()}) for k, e, d in rows]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def _unpacked(data: bytes) -> list[tuple[str, int | None, bytes]]:
    """Raises ValueError, OSError or EOFError: it is not whole, or of another format."""
    head, *lines = gzip.decompress(data).decode().split("\n")
    told = json.loads(head)
    if told["format"] != FORMAT or told["rows"] != len(lines):
        raise ValueError("not this format, or not whole")
    read = (json.loads(line) for line in lines)
    return [(row["key"], row["ends"], b64decode(row["dump"])) for row in read]


def keeper_of(text: str, token: str | None) -> Keeper:
    """What `folder:PATH` or `dataset:NAMESPACE/NAME` names.

    Raises:
        BadInput: neither, or a dataset without a token.
    """
    kind, _, where = text.partition(":")
    if kind == "folder" and where:
        return FolderKeeper(Path(where))
    if kind == "dataset" and where:
        if not token:
            raise BadInput("the dataset needs a token; set the secret TRICKSMITH_HISTORY_TOKEN")
        return DatasetKeeper(where, token)
    raise BadInput(f"{text!r} names no place for the history; write folder:PATH or dataset:NAMESPACE/NAME")
