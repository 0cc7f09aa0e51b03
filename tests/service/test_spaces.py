"""Deploying a Space: the real huggingface_hub client against a Hub of our own."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, SpaceHardware
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings
from service.space_files import HERE, ROOMS, requirements, space_files
from service.space_setup import MARK, Setup, make_setup
from service.spaces import Wish, deploy, write_folder
from tests.hub_server import HubServer
from tricks import BadInput

SPACE = "smith/tricksmith"
ENV: dict[str, str] = {}


def test_a_new_space_has_all_it_needs_and_a_second_deployment_changes_nothing(hub: HubServer) -> None:
    made = deploy(Wish(SPACE), ENV)
    repo, runtime = hub.repo(f"spaces/{SPACE}"), hub.runtimes[f"spaces/{SPACE}"]
    assert made.url == f"{hub.endpoint}/spaces/{SPACE}"
    assert made.commit == repo.refs["main"]
    assert len(repo.commits) == 2, "the Hub's first, and one of ours"
    assert runtime.hardware == "cpu-basic"
    assert re.fullmatch("[0-9a-f]{64}", runtime.secrets["TRICKSMITH_TOKEN_KEY"])
    assert hub.buckets[f"{SPACE}-history"]["visibility"] == "private"
    assert [(v["source"], v["mountPath"]) for v in runtime.volumes] == [(f"{SPACE}-history", "/data")]
    assert {name.split("/")[0] for name in repo.files} >= {*ROOMS, "app.py", "requirements.txt", MARK}
    assert not [name for name in repo.files if name.startswith("tests/") or name.endswith(".pyc")]

    hub.requests.clear()
    again = deploy(Wish(SPACE), ENV)
    assert again.done == ()
    assert again.commit == made.commit
    assert {r.method for r in hub.requests} <= {"GET", "HEAD"}


def test_an_update_is_one_commit_of_what_changed_and_keeps_its_options(hub: HubServer) -> None:
    deploy(Wish(SPACE, "t4-small", "none"), ENV)
    repo, runtime = hub.repo(f"spaces/{SPACE}"), hub.runtimes[f"spaces/{SPACE}"]
    key = runtime.secrets["TRICKSMITH_TOKEN_KEY"]
    api = HfApi(hub.endpoint, "hf_smith")
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="app.py", repo_id=SPACE, repo_type="space")
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="ui/old.py", repo_id=SPACE, repo_type="space")
    before = len(repo.commits)
    assert deploy(Wish(SPACE), ENV).done == ("wrote 2 files",)
    assert len(repo.commits) == before + 1
    assert "ui/old.py" not in repo.files
    assert Setup.from_text(repo.files[MARK].decode()).hardware == runtime.hardware == "t4-small"

    done = deploy(Wish(SPACE, "a10g-large", "bucket"), ENV).done
    assert runtime.hardware == "a10g-large"
    assert runtime.volumes
    assert runtime.secrets["TRICKSMITH_TOKEN_KEY"] == key, "what is sealed stays readable"
    assert len(done) == 4


def test_a_deployment_that_broke_off_goes_on(hub: HubServer) -> None:
    hub.fail("POST /api/spaces/.*/commit/", status=500, times=9)
    with pytest.raises(BadInput):
        deploy(Wish(SPACE), ENV)
    hub.faults.clear()
    deploy(Wish(SPACE), ENV)
    assert hub.repo(f"spaces/{SPACE}").files["app.py"]


def test_a_space_of_somebody_elses_making_is_left_alone(hub: HubServer) -> None:
    api = HfApi(hub.endpoint, "hf_smith")
    api.create_repo(SPACE, repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="app.py", repo_id=SPACE, repo_type="space")
    commits = len(hub.repo(f"spaces/{SPACE}").commits)
    with pytest.raises(BadInput, match="did not make"):
        deploy(Wish(SPACE), ENV)
    assert len(hub.repo(f"spaces/{SPACE}").commits) == commits


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("tricksmith"), "NAMESPACE/NAME"),
        (Wish("../x"), "NAMESPACE/NAME"),
        (Wish("other/tricksmith"), "may not write to other"),
        (Wish(SPACE, "gpu-of-dreams"), "no hardware of the Hub"),
        (Wish(SPACE, history="s3"), "no storage"),
        (Wish(SPACE, history="dataset"), "TRICKSMITH_HISTORY_TOKEN"),
        (Wish(SPACE, remote_redis="redis://far:443"), "TRICKSMITH_TOKEN_KEY"),
        (Wish(SPACE, remote_redis="http://far"), "rediss://"),
        (Wish(SPACE, history="bucket", remote_redis="rediss://far:443"), "--storage"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(hub: HubServer, wish: Wish, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        deploy(wish, ENV)
    assert not hub.repos
    assert not hub.buckets


def test_what_costs_money_is_said_in_words(hub: HubServer) -> None:
    hub.paid_hardware = {"cpu-basic"}
    with pytest.raises(BadInput, match=r"wants a subscription.*--hardware"):
        deploy(Wish(SPACE, history="none"), ENV)
    hub.paid_hardware = {"buckets"}
    with pytest.raises(BadInput, match=r"wants a subscription.*--storage"):
        deploy(Wish(SPACE), ENV)
    assert not hub.repos


def test_history_in_a_dataset_and_a_face_of_a_redis_elsewhere(hub: HubServer) -> None:
    deploy(Wish(SPACE, history="dataset"), {"TRICKSMITH_HISTORY_TOKEN": "hf_smith"})
    assert hub.repo(f"datasets/{SPACE}-history").private
    assert hub.runtimes[f"spaces/{SPACE}"].secrets["TRICKSMITH_HISTORY_TOKEN"] == "hf_smith"

    key = "ab" * 32
    deploy(Wish("forge/face", remote_redis="rediss://:pw@far:443"), {"TRICKSMITH_TOKEN_KEY": key})
    runtime, repo = hub.runtimes["spaces/forge/face"], hub.repo("spaces/forge/face")
    assert runtime.secrets == {"TRICKSMITH_TOKEN_KEY": key, "REDIS_URL": "rediss://:pw@far:443"}
    assert not any(b"rediss://:pw" in data or key.encode() in data for data in repo.files.values())
    # Brought up to date without the secrets at hand.
    assert deploy(Wish("forge/face"), ENV).done == ()


@pytest.mark.parametrize("hardware", ["cpu-basic", "zero-a10g", "t4-small"])
def test_the_folder_of_a_dry_run(hardware: str, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    write_folder(Wish(SPACE, hardware), folder)
    said = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (said["sdk"], said["app_file"], said["hf_oauth"]) == ("gradio", "app.py", True)
    assert said["hf_oauth_scopes"] == ["contribute-repos", "gated-repos"]
    assert said["suggested_hardware"] == hardware
    text = (folder / "requirements.txt").read_text()
    assert ("--extra-index-url" in text) == (hardware == "cpu-basic")
    app = (folder / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert ("@spaces.GPU" in app) == (hardware == "zero-a10g")
    with pytest.raises(BadInput, match="exists"):
        write_folder(Wish(SPACE, hardware), folder)


def test_requirements_are_the_versions_that_the_tests_ran_with() -> None:
    constraints = [
        line.split("==") for line in (HERE / "constraints.txt").read_text().split() if "==" in line
    ]
    pinned = {canonicalize_name(name): number for name, number in constraints}
    lines = [line for line in requirements(Setup()).splitlines() if "==" in line]
    found = dict(line.split("==") for line in lines)
    assert {name: number for name, number in found.items() if name in pinned} == {
        name: pinned[name] for name in found if name in pinned
    }
    wanted = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {canonicalize_name(Requirement(text).name) for text in wanted} - {"gradio"}
    assert names <= set(found)
    assert {"pytest", "mypy", "playwright", "gradio"}.isdisjoint(found)


@pytest.mark.parametrize("hardware", [flavor.value for flavor in SpaceHardware])
def test_limits_are_ones_that_the_settings_understand(hardware: str) -> None:
    setup = make_setup(SPACE, hardware, "none", remote=False)
    settings = Settings.from_env(setup.limits)
    assert settings.limits.model_bytes * 4 <= settings.memory
    assert settings.limits.user_jobs == 5
    assert Setup.from_text(setup.to_text()) == setup


def test_a_set_up_of_a_later_release_is_not_guessed_at() -> None:
    text = json.dumps({**json.loads(Setup().to_text()), "format": 2})
    with pytest.raises(BadInput, match="update Tricksmith"):
        Setup.from_text(text)


def test_nothing_but_code_and_text_is_deployed() -> None:
    files = space_files(Setup())
    assert sum(map(len, files.values())) < 5_000_000
    assert all(b"\0" not in data for data in files.values())
