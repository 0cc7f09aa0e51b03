"""Work folders: one attempt in each, room reserved, none left behind; GPUs one job each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs import Job, JobStore, State
from service.redis_server import running_redis
from service.settings import Settings
from tricks import BadInput, Cancelled
from workers.gpus import NO_GPU, Gpus, visible_gpus
from workers.workspace import MARGIN, Workspace, sweep

JOB = "0123456789ab"


def never() -> None:
    raise AssertionError("nothing is to be waited for")


def test_a_second_attempt_goes_on_in_the_firsts_folder_once_that_is_over(tmp_path: Path) -> None:
    with Workspace(tmp_path, JOB) as first:
        (first.folder / "product").touch()
        with Workspace(tmp_path, JOB) as second:
            assert second.folder != first.folder
    with Workspace(tmp_path, JOB) as third:
        assert third.folder == first.folder
        assert (third.folder / "product").exists()


def test_a_child_that_lives_on_keeps_the_folder_its_own(tmp_path: Path) -> None:
    with Workspace(tmp_path, JOB) as space:
        folder = space.folder
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=[space.lock],
        )
    with Workspace(tmp_path, JOB) as other:
        assert other.folder != folder
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
    with Workspace(tmp_path, JOB) as again:
        assert again.folder == folder


def test_many_attempts_at_once_never_share_a_folder(tmp_path: Path) -> None:
    held: list[Path] = []
    over = threading.Event()

    def hold() -> None:
        with Workspace(tmp_path, JOB) as space:
            held.append(space.folder)
            over.wait()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(held) < 8:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert len(set(held)) == 8


def test_reserved_room_is_no_others_until_its_attempt_is_over(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free - MARGIN
    share = int(free * 0.7)

    def stop() -> None:
        raise Cancelled("waits")

    with Workspace(tmp_path, "a" * 12) as first, Workspace(tmp_path, "b" * 12) as second:
        first.reserve(share, "one", never)
        with pytest.raises(Cancelled):
            second.reserve(share, "another", stop)
        second.reserve(1, "a small one", never)
        with pytest.raises(BadInput, match="free some space"):
            second.reserve(2 * free, "a giant", never)
    with Workspace(tmp_path, "c" * 12) as third:
        third.reserve(share, "later", never)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with running_redis(Settings(data=tmp_path / "data")) as url:
        store = JobStore(url)
        yield store
        store.close()


def make(store: JobStore, state: State) -> Job:
    job, _ = store.create(model="m", tricks=[], to=state, source={}, key=state)
    if state is not State.QUEUED:
        store.begin(job.id, "w", 30)
    if state.final:
        store.finish(job.id, "w", state, reason="because")
    return job


def test_folders_that_nobody_needs_are_swept(store: JobStore, tmp_path: Path) -> None:
    work = tmp_path / "work"
    jobs = {state: make(store, state).id for state in State}
    for job_id in jobs.values():
        with Workspace(work, job_id):
            pass
    with Workspace(work, jobs[State.RUNNING]):
        gone = sweep(work, store, keep_failed=60)
    assert set(gone) == {jobs[state] for state in (State.PUBLISHED, State.REJECTED, State.CANCELLED)}
    assert set(sweep(work, store, keep_failed=0)) == {jobs[State.FAILED], jobs[State.RUNNING]}
    assert [path.name for path in work.iterdir()] == [jobs[State.QUEUED]]


def test_what_a_crash_left_beside_a_job_is_swept(store: JobStore, tmp_path: Path) -> None:
    work = tmp_path / "work"
    job = make(store, State.QUEUED)
    with Workspace(work, job.id), Workspace(work, job.id) as second:
        assert sweep(work, store, keep_failed=60) == []
    assert sweep(work, store, keep_failed=60) == [second.folder.name]
    unknown = work / "ffffffffffff"
    unknown.mkdir()
    assert sweep(work, store, keep_failed=60) == ["ffffffffffff"]


def test_each_gpu_is_one_jobs(tmp_path: Path) -> None:
    def busy() -> None:
        raise Cancelled("all are taken")

    here, other_worker = Gpus(tmp_path, ("0", "1")), Gpus(tmp_path, ("0", "1"))
    with here.one(never) as first:
        with other_worker.one(never) as second:
            found = {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]}
            assert found == {"0", "1"}
            with pytest.raises(Cancelled), here.one(busy):
                pass
        with here.one(never) as again:
            assert again == second
        assert here.busy == 1
    with Gpus(tmp_path, ()).one(never) as none:
        assert none == NO_GPU


def test_gpus_are_those_that_may_be_seen() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 3"}) == ("2", "3")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert visible_gpus({"PATH": os.defpath}) is not None
