"""Puts Tricksmith on a Hub Space, or brings up to date one that it made; what is equal is left alone."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, Volume
from huggingface_hub.hf_api import RepoFile

from service.hub import HubMissing, ask, endpoint, hub, is_hub_id
from service.rights import check_rights
from service.space_files import secrets_of, space_files
from service.space_setup import MARK, MOUNTED, Setup, make_setup
from service.upload import in_memory
from tricks import BadInput

_LONGEST = 200  # characters of NAMESPACE/NAME
_EMPTY = {".gitattributes", "README.md"}
"""What a new Space holds before anybody put anything there."""


@dataclass(frozen=True)
class Wish:
    """What the caller asks for; None: as it was deployed last, or as a first deployment does it."""

    space: str
    hardware: str | None = None
    history: str | None = None
    remote_redis: str | None = None
    private: bool = False


@dataclass(frozen=True)
class Deployed:
    """What came of it: `done` says in words what was changed, and is empty where nothing had to be."""

    space: str
    url: str
    commit: str | None
    setup: Setup
    done: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        told = {name: getattr(self, name) for name in ("space", "url", "commit")}
        return {**told, "setup": vars(self.setup), "done": list(self.done)}


def write_folder(wish: Wish, folder: Path) -> Setup:
    """Write what would be deployed into the new `folder`; asks the Hub nothing.

    Raises:
        BadInput: `wish` cannot be, or `folder` exists.
    """
    setup = _setup(wish, None)
    if folder.exists():
        raise BadInput(f"{folder} exists; name a folder that does not")
    for name, data in space_files(setup).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return setup


def deploy(wish: Wish, env: Mapping[str, str] | None = None) -> Deployed:
    """Make the Space, or update it: bucket or dataset, secrets, volumes, one commit, hardware.

    Secrets come from `env` (os.environ).

    Raises:
        BadInput: a Space that we did not make, no right to write, a missing secret, what the Hub refuses.
    """
    env = os.environ if env is None else env
    _check_name(wish.space)
    check_rights(wish.space, None, pr=False)
    api = hub()
    there = _there(api, wish.space)
    setup = _setup(wish, there)
    files = space_files(setup)
    done: list[str] = []
    given = _given(wish, setup, env)
    if there is None:
        missing = [name for name in secrets_of(setup) if name not in given]
        _check_secrets(missing)
        done += _make_history(api, setup)
        _make_space(api, wish, setup, given)
        done.append(f"made the Space on {setup.hardware}")
    else:
        done += _make_history(api, setup) if setup.history != there.history else []
        done += _update(api, wish.space, setup, given)
    commit, changed = _commit(api, wish.space, files)
    if changed:
        done.append(f"wrote {changed} files")
    return Deployed(wish.space, f"{endpoint()}/spaces/{wish.space}", commit, setup, tuple(done))


def _check_name(space: str) -> None:
    if len(space) > _LONGEST or not is_hub_id(space) or "/" not in space:
        raise BadInput(f"{space[:_LONGEST]!r} is no name of a Space; write NAMESPACE/NAME")


def _there(api: HfApi, space: str) -> Setup | None:
    """The set-up of a Space of ours; an empty one is as good as new; None where there is none.

    Raises:
        BadInput: it holds something that we did not put there.
    """
    try:
        info = ask(space, lambda: api.space_info(space))
    except HubMissing:
        return None
    names = {file.rfilename for file in info.siblings or []}
    if MARK in names:
        path = ask(space, lambda: api.hf_hub_download(space, MARK, repo_type="space", revision=info.sha))
        return Setup.from_text(Path(path).read_text(encoding="utf-8"))
    if names <= _EMPTY:
        return Setup(hardware="")
    raise BadInput(f"{space} is a Space that Tricksmith did not make; name another, or delete it first")


def _setup(wish: Wish, there: Setup | None) -> Setup:
    _check_name(wish.space)
    former = there if there is not None and there.hardware else None
    remote = wish.remote_redis is not None or (former is not None and former.remote)
    if remote and wish.history not in (None, "none"):
        raise BadInput("jobs last in the remote Redis itself; leave out --storage")
    hardware = wish.hardware or (former.hardware if former else "cpu-basic")
    history = wish.history or (former.history if former else "bucket")
    return make_setup(wish.space, hardware, history, remote=remote)


def _given(wish: Wish, setup: Setup, env: Mapping[str, str]) -> dict[str, str]:
    """The secrets whose values are known here."""
    found = {name: env[name] for name in secrets_of(setup) if env.get(name) and name != "REDIS_URL"}
    if wish.remote_redis:
        if not wish.remote_redis.startswith(("redis://", "rediss://")):
            raise BadInput("the remote Redis is named by redis://... or, better, rediss://...")
        found["REDIS_URL"] = wish.remote_redis
    elif "TRICKSMITH_TOKEN_KEY" not in found and not setup.remote:
        found["TRICKSMITH_TOKEN_KEY"] = secrets.token_hex(32)
    return found


def _check_secrets(missing: list[str]) -> None:
    what = {
        "TRICKSMITH_TOKEN_KEY": "set TRICKSMITH_TOKEN_KEY to the one that the workers have",
        "TRICKSMITH_HISTORY_TOKEN": "set TRICKSMITH_HISTORY_TOKEN to a token that may write to the dataset",
        "REDIS_URL": "name the Redis by --remote-redis",
    }
    if missing:
        raise BadInput(
            f"the Space needs a secret that is not given; {'; '.join(what[name] for name in missing)}"
        )


def _make_history(api: HfApi, setup: Setup) -> list[str]:
    kind, _, where = setup.history.partition(":")
    makers: dict[str, Callable[[], Any]] = {
        "bucket": lambda: api.create_bucket(where, private=True, exist_ok=True),
        "dataset": lambda: api.create_repo(where, repo_type="dataset", private=True, exist_ok=True),
    }
    if kind not in makers:
        return []
    _paid(where, makers[kind], f"choose another --storage than {kind}")
    return [f"keeps its history in the private {kind} {where}"]


def _volumes(setup: Setup) -> list[Volume]:
    kind, _, where = setup.history.partition(":")
    return [Volume(type="bucket", source=where, mount_path=MOUNTED)] if kind == "bucket" else []


def _make_space(api: HfApi, wish: Wish, setup: Setup, given: dict[str, str]) -> None:
    told: Any = {
        "space_hardware": setup.hardware,
        "space_secrets": [{"key": name, "value": value} for name, value in given.items()],
        "space_volumes": _volumes(setup) or None,
    }
    _paid(
        wish.space,
        lambda: api.create_repo(
            wish.space, repo_type="space", space_sdk="gradio", private=wish.private, exist_ok=False, **told
        ),
        "choose another --hardware; cpu-basic needs a PRO account, and zero-a10g may be free where it is not",
    )


def _paid(what: str, call: Callable[[], Any], instead: str) -> Any:
    """Raises BadInput: also in words where the Hub wants money."""
    try:
        return ask(what, call)
    except BadInput as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status == 402:
            raise BadInput(f"the Hub wants a subscription for {what}; subscribe, or {instead}") from error
        raise


def _update(api: HfApi, space: str, setup: Setup, given: dict[str, str]) -> list[str]:
    done = []
    has = ask(space, lambda: api.get_space_secrets(space))
    _check_secrets([name for name in secrets_of(setup) if name not in has and name not in given])
    for name, value in given.items():
        if name not in has or name == "REDIS_URL":
            ask(space, lambda name=name, value=value: api.add_space_secret(space, name, value))  # type: ignore[misc]
            done.append(f"set the secret {name}")
    runtime = ask(space, lambda: api.get_space_runtime(space))
    volumes = _volumes(setup)
    if [vol.to_dict() for vol in runtime.volumes or []] != [vol.to_dict() for vol in volumes]:
        ask(space, lambda: api.set_space_volumes(space, volumes))
        done.append("mounted the bucket" if volumes else "mounted nothing any more")
    if (runtime.requested_hardware or runtime.hardware) != setup.hardware:
        hardware: Any = setup.hardware
        _paid(space, lambda: api.request_space_hardware(space, hardware), "choose another --hardware")
        done.append(f"asked for {setup.hardware}")
    return done


def _commit(api: HfApi, space: str, files: dict[str, bytes]) -> tuple[str, int]:
    """Make the Space hold `files` alone, in one commit; the commit that it is at, and how many changed."""
    info = ask(space, lambda: api.space_info(space))
    head = str(info.sha)
    tree = ask(
        space, lambda: list(api.list_repo_tree(space, recursive=True, repo_type="space", revision=head))
    )
    there = {item.path: item for item in tree if isinstance(item, RepoFile)}
    changed = [name for name, data in files.items() if name not in there or not _same(there[name], data)]
    gone = [name for name in there if name not in files and name != ".gitattributes"]
    if not changed and not gone:
        return head, 0
    operations: list[Any] = [CommitOperationAdd(name, in_memory(files[name])) for name in changed]
    operations += [CommitOperationDelete(name) for name in gone]
    made = ask(
        space,
        lambda: api.create_commit(
            space,
            operations,
            commit_message="Tricksmith, by `tricksmith space deploy`",
            repo_type="space",
            parent_commit=head,
        ),
    )
    return str(made.oid), len(operations)


def _same(there: RepoFile, data: bytes) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
