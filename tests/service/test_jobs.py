"""Job records: legal moves only, one active job per request, no worker changes another's job."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.jobs import MOVES, SCHEMA, Job, JobStore, NotOurs, Stage, State, request_key
from service.redis_server import running_redis
from service.settings import Settings
from tricks import BadInput

LEASE = 30.0


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(Settings(data=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore(redis_url)
    store._redis.flushdb()
    yield store
    store.close()


def make(store: JobStore, to: str = "me/it", **more: Any) -> Job:
    key = request_key("abc", ["flashnorm"], to, pr=False, private=False)
    source = {"model": "org/it", "commit": "abc"}
    return store.create(model="org/it", tricks=["flashnorm"], to=to, source=source, key=key, **more)[0]


def test_a_new_job_is_queued_and_read_back(store: JobStore) -> None:
    job = make(store, pr=True)
    assert store.get(job.id) == job
    assert (job.state, job.pr, job.schema) == (State.QUEUED, True, SCHEMA)
    assert [event.state for event in store.events(job.id)] == ["queued"]


def test_the_same_request_is_one_job_while_it_is_under_way(store: JobStore) -> None:
    job = make(store)
    assert make(store).id == job.id
    store.begin(job.id, "w", LEASE)
    assert make(store).id == job.id
    store.finish(job.id, "w", State.FAILED, reason="no")
    again = make(store)
    assert again.id != job.id
    with pytest.raises(NotOurs, match=again.id):
        store.retry(job.id)


def test_many_submit_the_same_at_once(store: JobStore) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(make(store).id)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 12
    assert len(set(ids)) == 1
    assert len(store.latest()) == 1


def test_a_run_from_queue_to_published(store: JobStore) -> None:
    job = make(store)
    running = store.begin(job.id, "w", LEASE)
    assert (running.state, running.attempts) == (State.RUNNING, 1)
    store.stage(job.id, "w", Stage.CONVERT)
    store.progress(job.id, "w", Stage.CONVERT, "bytes", 5, 10)
    assert store.get(job.id).progress == ("bytes", 5, 10)
    store.stage(job.id, "w", Stage.VERIFY)
    assert store.get(job.id).progress is None
    store.finish(job.id, "w", State.PUBLISHED, verdict="equivalent", result="/out")
    done = store.get(job.id)
    assert (done.state, done.verdict, done.result) == (State.PUBLISHED, "equivalent", "/out")
    assert done.finished is not None
    kinds = [(event.kind, event.state or event.stage, event.done) for event in store.events(job.id)]
    assert kinds == [
        ("state", "queued", None),
        ("state", "running", None),
        ("stage", "convert", None),
        ("progress", "convert", 5),
        ("stage", "verify", None),
        ("state", "published", None),
    ]


@pytest.mark.parametrize("end", [State.PUBLISHED, State.REJECTED, State.FAILED, State.CANCELLED])
def test_a_finished_job_moves_only_as_the_table_says(store: JobStore, end: State) -> None:
    job = make(store)
    store.begin(job.id, "w", LEASE)
    store.finish(job.id, "w", end, reason="because")
    with pytest.raises(NotOurs):
        store.begin(job.id, "w", LEASE)
    with pytest.raises(NotOurs):
        store.finish(job.id, "w", State.PUBLISHED)
    assert store.cancel(job.id).state is end
    if State.QUEUED in MOVES[end]:
        again = store.retry(job.id)
        assert (again.state, again.reason, again.cancel) == (State.QUEUED, None, False)
        assert make(store).id == job.id
    else:
        with pytest.raises(NotOurs, match=end.value):
            store.retry(job.id)


def test_only_one_worker_gets_the_job(store: JobStore) -> None:
    job = make(store)
    won: list[str] = []

    def begin(owner: str) -> None:
        try:
            store.begin(job.id, owner, LEASE)
        except NotOurs:
            return
        won.append(owner)

    threads = [threading.Thread(target=begin, args=[f"w{n}"]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_silent_workers_job_is_queued_again_and_it_can_change_nothing_more(store: JobStore) -> None:
    job = make(store)
    store.begin(job.id, "silent", 0.05)
    time.sleep(0.1)
    assert store.reclaim() == [job.id]
    assert store.waiting_ids(10) == [job.id]
    store.begin(job.id, "other", LEASE)
    assert store.reclaim() == []
    for change in (
        lambda: store.finish(job.id, "silent", State.PUBLISHED),
        lambda: store.progress(job.id, "silent", Stage.FETCH, "bytes", 1, 2),
        lambda: store.beat(job.id, "silent", LEASE),
        lambda: store.give_back(job.id, "silent"),
        lambda: store.lay_down(job.id, "silent", "card", "mine"),
    ):
        with pytest.raises(NotOurs):
            change()
    assert store.get(job.id).attempts == 2


def test_a_beating_worker_keeps_its_job(store: JobStore) -> None:
    job = make(store)
    store.begin(job.id, "w", 0.2)
    for _ in range(5):
        time.sleep(0.08)
        assert store.beat(job.id, "w", 0.2) is False
        assert store.reclaim() == []


def test_cancel_queued_and_running(store: JobStore) -> None:
    queued, running = make(store, "me/a"), make(store, "me/b")
    assert store.cancel(queued.id).state is State.CANCELLED
    store.begin(running.id, "w", LEASE)
    assert store.cancel(running.id).state is State.RUNNING
    assert store.beat(running.id, "w", LEASE) is True


def test_events_wait_for_the_next_one(store: JobStore) -> None:
    job = make(store)
    last = store.events(job.id)[-1].id
    assert store.events(job.id, after=last, block_ms=50) == []
    timer = threading.Timer(0.1, store.begin, args=[job.id, "w", LEASE])
    timer.start()
    assert [event.state for event in store.events(job.id, after=last, block_ms=5000)] == ["running"]
    timer.join()


def test_newest_jobs_first_and_unknown_ids(store: JobStore) -> None:
    ids = [make(store, f"me/{n}").id for n in range(4)]
    assert [job.id for job in store.latest(limit=3)] == ids[:0:-1]
    with pytest.raises(BadInput, match="no job"):
        store.get("nope")


def test_a_record_of_a_later_schema_can_be_read(store: JobStore) -> None:
    job = make(store)
    store._redis.hset(f"tricksmith:job:{job.id}", "colour", '"blue"')
    assert store.get(job.id).id == job.id
