"""The files of a Space of ours: README with front matter, requirements, app.py, set-up, our own sources."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.space_setup import MARK, MOUNTED, Setup
from service.tokens import WANTED
from tricks import TricksmithError

ROOMS = ("tricks", "evals", "service", "workers", "ui")
HERE = Path(__file__).resolve().parents[1]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The one that the pinned versions were tried on."""
ZERO_PYTHON = "3.12.12"
"""ZeroGPU takes exact versions (huggingface.co/docs/hub/spaces-zerogpu)."""
SIGN_IN_MINUTES = 480
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

_KINDS = {".py", ".md", ".txt", ".yaml", ".css", ".js", ".html"}
_BROUGHT = re.compile(r"nvidia-|cuda-|triton")
"""What a CUDA build of torch pins itself."""

_APP = '''"""Tricksmith on a Hub Space; written by `tricksmith space deploy`."""

from pathlib import Path

from ui.space import main

main(Path(__file__).resolve().parent)
'''

_ZERO_APP = '''"""Tricksmith on a Hub Space with ZeroGPU; written by `tricksmith space deploy`."""

import spaces  # before anything that may touch a GPU

from pathlib import Path

import torch

from ui.space import main


@spaces.GPU(duration=15)
def gpu() -> str:
    """Name the GPU that ZeroGPU lends to this call."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


main(Path(__file__).resolve().parent, gpu=gpu)
'''

_SECRETS = {
    "TRICKSMITH_TOKEN_KEY": "seals visitors' sign-ins; made at random by the first deployment",
    "TRICKSMITH_HISTORY_TOKEN": "a fine-grained token with `repo.write` on the history dataset alone",
    "REDIS_URL": "the Redis, its password included, that workers elsewhere work off",
}


def secrets_of(setup: Setup) -> list[str]:
    """The names of the secrets that this Space needs."""
    names = ["TRICKSMITH_TOKEN_KEY"]
    if setup.history.startswith("dataset:"):
        names.append("TRICKSMITH_HISTORY_TOKEN")
    return names + ["REDIS_URL"] * setup.remote


def space_files(setup: Setup) -> dict[str, bytes]:
    """Every file of the Space by its path; the same set-up and release give the same bytes.

    Raises:
        TricksmithError: what is installed here does not fit together.
    """
    texts = {
        "README.md": _readme(setup),
        "requirements.txt": requirements(setup),
        "app.py": _ZERO_APP if setup.zero else _APP,
        MARK: setup.to_text(),
    }
    files = {name: text.encode() for name, text in texts.items()}
    for room in ROOMS:
        for path in sorted((HERE / room).rglob("*")):
            if path.suffix in _KINDS and "__pycache__" not in path.parts:
                files[path.relative_to(HERE).as_posix()] = path.read_bytes()
    return files


def requirements(setup: Setup) -> str:
    """What the Space installs: every distribution at the version that is installed, and was tested, here.

    Gradio is not among them: a Space installs these together with `gradio[oauth,mcp]` at the version that the
    front matter names, and what the extra `mcp` wants in another version than ours is left to it.
    """
    theirs = {"gradio", *_at_odds("gradio", "mcp")}
    pins = sorted(f"{name}=={number}" for name, number in _closure(_wanted()) if name not in theirs)
    head = [] if setup.gpu else [f"--extra-index-url {CPU_INDEX}"]
    return "\n".join(["# Written by `tricksmith space deploy`.", *head, *pins, ""])


def _wanted() -> list[str]:
    """Our requirements: of this checkout, or of the release that is installed."""
    project = HERE / "pyproject.toml"
    if project.is_file():
        found: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        return found
    return distribution("tricksmith").requires or []


def _closure(texts: Iterable[str]) -> list[tuple[str, str]]:
    """(name, version) of all that `texts` need, directly or not, as it is installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in texts]
    while todo:
        need, extra = todo.pop()
        name = canonicalize_name(need.name)
        if (need.marker and not need.marker.evaluate({"extra": extra})) or _BROUGHT.match(name):
            continue
        try:
            there = distribution(need.name)
        except PackageNotFoundError:
            raise TricksmithError(f"{need.name} is not installed here; install Tricksmith anew") from None
        found[name] = there.version.partition("+")[0]
        for wanted in ("", *need.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in there.requires or []]
    return list(found.items())


def _at_odds(name: str, extra: str) -> Iterator[str]:
    """What the extra needs in a version that is not installed here, and what that pins in turn."""
    for text in distribution(name).requires or []:
        need = Requirement(text)
        ours = need.marker is not None and need.marker.evaluate({"extra": extra})
        if not ours or need.marker.evaluate({"extra": ""}):  # type: ignore[union-attr]
            continue
        try:
            there = distribution(need.name)
        except PackageNotFoundError:
            continue
        if not need.specifier.contains(there.version):
            yield canonicalize_name(need.name)
            pinned = [Requirement(text) for text in there.requires or []]
            yield from (canonicalize_name(one.name) for one in pinned if "==" in str(one.specifier))


def _readme(setup: Setup) -> str:
    kind, _, where = setup.history.partition(":")
    template = (Path(__file__).parent / "space_readme.md").read_text(encoding="utf-8")
    env = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    return env.from_string(template).render(
        front_matter=yaml.safe_dump(front_matter(setup), sort_keys=False, allow_unicode=True).strip(),
        hours=SIGN_IN_MINUTES // 60,
        secrets=[(name, _SECRETS[name]) for name in secrets_of(setup)],
        setup=setup,
        kind=kind,
        where=where,
        mounted=MOUNTED,
        limits=sorted(setup.limits.items()),
    )


def front_matter(setup: Setup) -> dict[str, Any]:
    """What the Hub reads (huggingface.co/docs/hub/spaces-config-reference)."""
    return {
        "title": "Tricksmith",
        "emoji": "✨",
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ZERO_PYTHON if setup.zero else PYTHON,
        "app_file": "app.py",
        "short_description": "Exact transformer tricks, proven and published",
        "license": "apache-2.0",
        "tags": ["tricksmith"],
        "suggested_hardware": setup.hardware,
        "startup_duration_timeout": "30m",
        "hf_oauth": True,
        "hf_oauth_expiration_minutes": SIGN_IN_MINUTES,
        "hf_oauth_scopes": sorted(WANTED),
    }
