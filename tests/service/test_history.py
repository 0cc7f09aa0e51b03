"""A service that loses its disk: what it knew comes back, from a folder and from a dataset on the Hub."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from service.api import Service
from service.history import DatasetKeeper, FolderKeeper, History, Keeper, keeper_of
from service.redis_server import running_redis
from service.settings import Settings
from service.tokens import Grant
from tests.hub_server import HubServer, User
from tricks import BadInput, TricksmithError

KEY = "ab" * 32


def world(data: Path) -> Settings:
    return Settings(data=data, token_key=KEY)


def restore(settings: Settings, keeper: Keeper) -> int:
    with running_redis(settings) as url:
        return History(url, keeper).restore()


@pytest.mark.parametrize("where", ["folder", "dataset"])
def test_jobs_survive_the_loss_of_the_disk(
    where: str, tmp_path: Path, hub: HubServer, small_llama: Path
) -> None:
    hub.users["hf_oauth_visitor"] = User("visitor", expires="2099-01-01T00:00:00.000Z")
    hub.add_model("forge/new", small_llama)
    grant = Grant.of("hf_oauth_visitor", time.time() + 3600, "openid profile contribute-repos gated-repos")
    text = f"folder:{tmp_path}/kept" if where == "folder" else "dataset:smith/history"
    keeper = keeper_of(text, "hf_smith")

    before = world(tmp_path / "before")
    with running_redis(before) as url, Service(before) as service:
        made = service.submit("forge/new", ["flashnorm"], grant=grant, private=True)
        cancelled = service.cancel(service.submit("forge/new", ["flashnorm"], "smith/x").id)
        events = service.events(cancelled.id)
        history = History(url, keeper)
        assert history.save()
        assert not history.save(), "nothing has changed since"

    after = world(tmp_path / "after")
    with running_redis(after) as url:
        assert History(url, keeper).restore() > 0
        with Service(after) as service:
            assert service.job(made.id) == made
            assert service.job(cancelled.id) == cancelled
            assert service.events(cancelled.id) == events
            assert [job.id for job in service.jobs(viewer="bob")] == [cancelled.id]
            # A job may only go on where its sign-in is; one that lies in a dataset could never be taken back.
            if where == "folder":
                assert service._vault.token(made) == "hf_oauth_visitor"
            else:
                with pytest.raises(BadInput, match="sign in and submit again"):
                    service._vault.token(made)
        assert History(url, keeper).restore() == 0, "a Redis that knows something is left alone"


def test_what_expired_meanwhile_is_gone(tmp_path: Path, hub: HubServer, small_llama: Path) -> None:
    hub.users["hf_oauth_visitor"] = User("visitor", expires="2099-01-01T00:00:00.000Z")
    hub.add_model("forge/new", small_llama)
    keeper = FolderKeeper(tmp_path / "kept")
    settings = world(tmp_path / "before")
    with running_redis(settings) as url, Service(settings) as service:
        ends = time.time() + 601
        made = service.submit(
            "forge/new", ["flashnorm"], grant=Grant.of("hf_oauth_visitor", ends, "contribute-repos")
        )
        service._vault._redis.expireat(f"tricksmith:job:{made.id}:token", int(time.time()) + 1)
        History(url, keeper).save()
    time.sleep(1.5)
    after = world(tmp_path / "after")
    with running_redis(after) as url, Service(after) as service:
        History(url, keeper).restore()
        job = service.job(made.id)
        with pytest.raises(BadInput, match="expired"):
            service._vault.token(job)


def test_a_half_written_file_is_passed_over_and_none_is_written_over_when_all_are_bad(tmp_path: Path) -> None:
    keeper, settings = FolderKeeper(tmp_path / "kept"), world(tmp_path / "data")
    with running_redis(settings) as url, Service(settings) as service:
        service.health()  # so that there is something
        service._store._redis.set("tricksmith:jobs-like", "1")
        assert History(url, keeper).save()
    (good,) = (tmp_path / "kept").iterdir()
    bad = good.with_name("9" + good.name[1:])
    bad.write_bytes(good.read_bytes()[:-7])
    assert restore(world(tmp_path / "again"), keeper) == 1
    good.unlink()
    with pytest.raises(TricksmithError, match="cannot be read"):
        restore(world(tmp_path / "third"), keeper)


def test_a_public_dataset_is_refused_and_a_hub_that_is_away_is_not_taken_for_an_empty_one(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = DatasetKeeper("smith/history", "hf_smith")
    assert restore(world(tmp_path / "a"), keeper) == 0
    HfApi(hub.endpoint, "hf_smith").create_repo("smith/history", repo_type="dataset", private=False)
    with pytest.raises(BadInput, match="make it private"):
        restore(world(tmp_path / "a"), keeper)
    monkeypatch.setattr("service.history._PATIENCE_S", 0.1)
    hub.fail("GET /api/datasets/", status=500, times=99)
    with pytest.raises(TricksmithError, match="the Hub failed"):
        restore(world(tmp_path / "a"), keeper)


@pytest.mark.parametrize("text", ["", "folder:", "dataset:", "s3://bucket", "dataset:smith/history"])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        keeper_of(text, None)
