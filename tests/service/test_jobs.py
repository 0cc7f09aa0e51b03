"""Job records: legal moves only, one active job per request, no worker changes another's job."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.jobs import MOST_LOST, MOVES, SCHEMA, Job, JobStore, NotOurs, Stage, State, request_key
from service.lanes import LARGE_FIRST_EVERY, in_order, lane
from service.limits import Limits
from service.redis_server import running_redis
from service.retention import retire
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


def test_a_record_of_another_schema_is_read_or_refused_in_one_line(store: JobStore) -> None:
    job, other = make(store), make(store, "me/other")
    key = f"tricksmith:job:{job.id}"
    store._redis.hset(key, "colour", '"blue"')
    assert store.get(job.id).id == job.id
    # What the first release wrote, and no more.
    kept = ("id", "model", "tricks", "to", "state", "created")
    store._redis.hdel(key, *(set(store._redis.hkeys(key)) - set(kept)))
    old = store.get(job.id)
    assert (old.state, old.lane, old.evidence_asked) == (State.QUEUED, lane(), None)
    assert store.begin(job.id, "w", LEASE).state is State.RUNNING
    store.finish(job.id, "w", State.PUBLISHED)
    # A state, or a stage, that nobody had thought of.
    store._redis.hset(key, mapping={"stage": '"notarise"', "schema": "99"})
    with pytest.raises(BadInput, match=f"newer Tricksmith .*schema 99, this one reads {SCHEMA}.*; upgrade"):
        store.get(job.id)
    assert [job.id for job in store.latest()] == [other.id]


def test_in_a_rolling_upgrade_old_workers_end_what_they_have_and_begin_nothing_new(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    had = make(store, "me/had")
    assert take(store) is not None
    new = make(store, "me/new")
    store._redis.hset(f"tricksmith:job:{new.id}", "schema", SCHEMA + 1)
    owner = store._redis.hget(f"tricksmith:job:{had.id}", "owner")
    store.finish(had.id, owner, State.PUBLISHED)
    assert take(store) is None
    with pytest.raises(NotOurs, match="for a newer worker"):
        store.begin(new.id, "w", LEASE)
    assert (store.get(new.id).state, store.waiting()) == (State.QUEUED, 1)
    older = make(store, "me/older")  # an old face still submits: that an old worker takes
    assert [job.id for job in [take(store), take(store)] if job] == [older.id]
    monkeypatch.setattr("service.jobs.SCHEMA", SCHEMA + 1)
    taken = take(store)
    assert taken is not None
    assert (taken.id, taken.schema) == (new.id, SCHEMA + 1)


def queue(store: JobStore, user: str, number: int, lane: str = "cpu/people/small", **more: Any) -> Job:
    return make(store, f"{user}/{number}-{lane}", user=user, lane=lane, **more)


def take(store: JobStore, lanes: list[str] | None = None, **more: Any) -> Job | None:
    return store.take(secrets.token_hex(4), LEASE, lanes or in_order(["cpu"], 0), **more)


def taken(store: JobStore, count: int, **more: Any) -> list[str]:
    jobs = [take(store, **more) for _ in range(count)]
    return [job.to for job in jobs if job is not None]


def test_a_job_costs_redis_as_much_after_many_others_as_after_none(store: JobStore) -> None:
    def one(to: str) -> int:
        store._redis.config_resetstat()
        make(store, to)
        assert store.lines()
        job = take(store)
        assert job is not None
        owner = store._redis.hget(f"tricksmith:job:{job.id}", "owner")
        store.stage(job.id, owner, Stage.CONVERT)
        store.progress(job.id, owner, Stage.CONVERT, "bytes", 1, 2)
        store.finish(job.id, owner, State.PUBLISHED)
        assert store.waiting() == 0
        return sum(told["calls"] for told in store._redis.info("commandstats").values())

    one("me/first")  # the scripts are loaded
    costs = [one(f"me/{number}") for number in range(200)]
    assert max(costs[100:]) < 1.1 * min(costs[:100]), (
        costs
    )  # a connection that is looked after costs a little


def test_users_take_turns_however_many_jobs_each_has(store: JobStore) -> None:
    for number in range(6):
        queue(store, "ann", number)
    for number in range(3):
        queue(store, "bob", number)
    queue(store, "cec", 0)
    users = [to.partition("/")[0] for to in taken(store, 10)]
    assert users == ["ann", "bob", "cec", "ann", "bob", "ann", "bob", "ann", "ann", "ann"]


def test_one_users_jobs_are_taken_in_their_order(store: JobStore) -> None:
    for number in range(4):
        queue(store, "ann", number)
    assert [to.split("/")[1][0] for to in taken(store, 4)] == ["0", "1", "2", "3"]


def test_the_place_in_line_is_kept(store: JobStore) -> None:
    jobs = [queue(store, user, number) for user in ("ann", "bob") for number in range(3)]
    ahead = {job.id: store.ahead(job) for job in jobs}
    for position in range(6):
        job = take(store)
        assert job is not None
        assert ahead[job.id] <= position + 1
    assert take(store) is None


def test_schedules_come_after_people(store: JobStore) -> None:
    queue(store, "watch", 0, lane(schedule=True))
    queue(store, "ann", 0)
    assert [to.partition("/")[0] for to in taken(store, 2)] == ["ann", "watch"]


def test_large_jobs_leave_a_place_for_small_ones_and_are_not_starved(store: JobStore) -> None:
    for number in range(3):
        queue(store, "big", number, lane(large=True))
    for number in range(8):
        queue(store, "small", number)
    order = []
    for turn in range(8):
        job = store.take(f"w{turn}", LEASE, in_order(["cpu"], turn), large=1)
        assert job is not None
        order.append(job.user)
    assert order.count("big") == 1  # one of two places; the others wait for it
    assert "big" in order[:LARGE_FIRST_EVERY]


def test_a_users_running_jobs_are_capped_while_others_go_on(store: JobStore) -> None:
    for number in range(3):
        queue(store, "ann", number)
    queue(store, "bob", 0)
    users = [to.partition("/")[0] for to in taken(store, 4, user_running=1)]
    assert users == ["ann", "bob"]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(user_waiting=2), "you have 2 jobs waiting"),
        (Limits(all_waiting=2), "2 jobs are waiting"),
        (Limits(user_bytes=25), "in a day"),
        (Limits(user_jobs=2), "2 jobs today"),
    ],
)
def test_a_limit_is_kept_whoever_asks_at_once(store: JobStore, limits: Limits, said: str) -> None:
    refused: list[str] = []

    def submit(number: int) -> None:
        source = {"model": "org/it", "size_bytes": 10}
        key = f"{said}{number}"
        try:
            store.create(
                model="m", tricks=[], to=str(number), source=source, key=key, user="ann", limits=limits
            )
        except BadInput as error:
            refused.append(str(error))

    threads = [threading.Thread(target=submit, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 6
    assert all(said in text for text in refused)
    assert store.waiting() == 2


def test_an_answer_that_was_lost_on_its_way_takes_no_second_job(store: JobStore) -> None:
    jobs = [queue(store, "ann", number) for number in range(2)]
    first = store.take("w", LEASE, in_order(["cpu"], 0))
    again = store.take("w", LEASE, in_order(["cpu"], 0))
    assert first is not None
    assert again is not None
    assert first.id == again.id == jobs[0].id
    assert store.waiting() == 1


def test_a_job_that_takes_its_workers_down_is_failed_in_the_end(store: JobStore) -> None:
    job = make(store)
    for attempt in range(MOST_LOST):
        assert store.get(job.id).state is State.QUEUED
        store.begin(job.id, f"w{attempt}", 0.01)
        time.sleep(0.03)
        assert store.reclaim() == [job.id]
    failed = store.get(job.id)
    assert (failed.state, failed.cause) == (State.FAILED, "worker lost")
    assert "its worker died" in str(failed.reason)


def test_a_retry_that_races_with_a_new_request_makes_no_second_job(store: JobStore) -> None:
    old = make(store)
    store.begin(old.id, "w", LEASE)
    store.finish(old.id, "w", State.FAILED, reason="no")
    results: list[str] = []

    def retry() -> None:
        try:
            results.append(store.retry(old.id).id)
        except NotOurs:
            results.append("refused")

    threads = [threading.Thread(target=retry), threading.Thread(target=lambda: make(store))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.waiting() == 1


def test_a_finished_job_loses_its_details_and_later_itself(store: JobStore) -> None:
    job = make(store)
    store.begin(job.id, "w", LEASE)
    store.lay_down(job.id, "w", "card", "x" * 100_000)
    for number in range(500):
        store.progress(job.id, "w", Stage.CONVERT, "bytes", number, 500)
    waiting = make(store, "me/other")
    store.finish(job.id, "w", State.PUBLISHED, verdict="equivalent", result="/out")
    assert retire(store, details=0, records=3600) == (1, 0)
    assert (store.paper(job.id, "card"), store.events(job.id)) == (None, [])
    kept = store.get(job.id)
    assert (kept.state, kept.verdict, kept.result) == (State.PUBLISHED, "equivalent", "/out")
    keys = list(store._redis.scan_iter(f"*{job.id}*"))
    assert sum(store._redis.memory_usage(key) for key in keys) < 4096
    assert retire(store, details=0, records=0) == (0, 1)
    with pytest.raises(BadInput):
        store.get(job.id)
    assert store.get(waiting.id).state is State.QUEUED


def test_events_keep_their_times_through_a_restart(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with running_redis(settings) as url:
        store = JobStore(url)
        job = make(store)
        events = store.events(job.id)
        store.close()
    time.sleep(0.05)
    with running_redis(settings) as url:
        store = JobStore(url)
        assert store.events(job.id) == events
        assert store.get(job.id) == job
        store.close()
