"""The house itself: what documents name exists, rooms import downwards, pins pin, services can start."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROOMS = ("ui", "workers", "service", "evals", "tricks")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_rooms_import_downwards() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed here")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_dependency_is_pinned_exactly() -> None:
    pinned = {canonical(name) for name in PINS}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        assert canonical(name[0]) in pinned, f"{requirement} is not in constraints.txt"


def test_torch_is_pinned_without_a_build() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", PINS["torch"])


def test_pins_name_no_path_and_no_build() -> None:
    assert not [f"{name}=={pin}" for name, pin in PINS.items() if re.search(r"[/@+]", name + pin)]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run"])
def test_make_targets_that_documents_name_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # Only in code: at the start of a line, of a code span, or after a prompt.
    command = r"(?:^|`|\$ |&& )make (?:--[a-z-]+ )*([a-z][a-z-]*)"
    named = re.findall(command, _text(document), re.MULTILINE)
    assert set(named) <= targets, f"{document} names {sorted(set(named) - targets)}"


def _text(document: str) -> str:
    return (ROOT / document).read_text()


def test_every_target_of_the_readme_workflow_is_listed_by_help() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "check", "bench-convert", "screenshots", "clean"):
        assert f"make {target} " in done.stdout


def test_what_a_room_ships_besides_code_is_packaged() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    for path in (Path(one) for one in tracked if not one.endswith(".py")):
        room, name = path.parts[0], str(Path(*path.parts[1:]))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in shipped.get(room, [])), (
            f"{path} is not packaged"
        )


OURS = sorted(
    name
    for name, service in COMPOSE["services"].items()
    if str(service.get("image", "")).startswith("tricksmith")
)


@pytest.mark.parametrize("name", OURS)
def test_compose_service_runs_a_command_that_exists(name: str) -> None:
    command = COMPOSE["services"][name]["command"]
    if command[0] == "tricksmith":
        from ui.cli import parser

        assert parser().parse_args(command[1:]).command == command[1]
    elif command[0] == "python":
        assert command[1:3] == ["-m", "workers.main"]
        assert command[3] in ("worker", "beat")
    else:
        assert command[0] == "celery"
        assert "flower" in command


def test_image_command_exists_and_does_not_run_as_root() -> None:
    from ui.cli import parser

    docker = _text("Dockerfile")
    command = yaml.safe_load(re.findall(r"^CMD (.*)$", docker, re.MULTILINE)[-1])
    assert command[0] == "tricksmith"
    assert parser().parse_args(command[1:])
    assert re.findall(r"^USER (.*)$", docker, re.MULTILINE)[-1] not in ("root", "0")


def test_compose_keeps_the_queue_on_disk_and_names_it_to_every_service() -> None:
    services = COMPOSE["services"]
    assert "--appendonly yes" in shlex.join(services["redis"]["command"])
    assert all("redis://redis:" in str(services[name]) for name in OURS)


def test_scripts_are_valid_bash_and_executable() -> None:
    for script in sorted((ROOT / ".ci").iterdir()):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o100, f"{script} is not executable"


def test_workflow_calls_the_same_script_as_a_person() -> None:
    workflow = yaml.safe_load(_text(".github/workflows/ci.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in [step.get("run") for step in steps]
