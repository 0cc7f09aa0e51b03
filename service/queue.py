"""The Celery app, as everybody who sends or receives builds it, and the messages that it carries.

A message says: somebody queued a job, come and take one. Which one is the next is decided when a worker comes
(`JobStore.take`: users in turn, people before schedules, small ones not behind large ones), not when it was
sent; so no order of messages has to be right. A message may come twice, late or never: who finds nothing to
take goes away, and `top_up` sends what is missing. Messages that a dead worker held are not waited for: its
job's lease brings the job back, well before Celery's visibility timeout, which therefore is long.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from celery import Celery

from service.jobs import PREFIX, SOCKET_TIMEOUT, JobStore
from service.lanes import Queue

RUN = "tricksmith.run"
RECOVER = "tricksmith.recover"
POLL = "tricksmith.poll"
LOOK = "tricksmith.look"
COMPARE = "tricksmith.compare"
WATCH = "watch"
"""The queue of what the watches ask for: short, and never behind a job."""
POLL_EVERY = 60.0  # seconds between two looks at which watches are due
RECOVER_EVERY = 10.0  # seconds
VISIBILITY_TIMEOUT = 24 * 3600  # seconds
MOST_TOPPED_UP = 64  # messages at a time
_KEYS = PREFIX + "celery:"


def make_app(redis_url: str) -> Celery:
    """The Celery app on this Redis; tasks are added by workers alone."""
    app = Celery("tricksmith", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=Queue.CPU.value,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "global_keyprefix": _KEYS,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
        },
        beat_schedule={
            # Expires: a beat that ran alone for a night must not leave a thousand of them.
            "recover": {"task": RECOVER, "schedule": RECOVER_EVERY, "options": {"expires": RECOVER_EVERY}},
            "poll": {
                "task": POLL,
                "schedule": POLL_EVERY,
                "options": {"expires": POLL_EVERY, "queue": WATCH},
            },
        },
    )
    return app


def broker_url(redis_url: str) -> str:
    """The same Redis as kombu writes it: `unix://` sockets are `redis+socket://` there."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    number = parts.query.removeprefix("db=") or "0"
    return f"redis+socket://{parts.path}?virtual_host={number}"


def send(app: Celery, job_id: str, queue: str) -> None:
    """Put a message into a queue."""
    app.send_task(RUN, args=[job_id], queue=queue)


def top_up(app: Celery, store: JobStore, *, no_gpu: bool = False) -> int:
    """Send the messages that are missing: there should be one for each job that waits. Returns how many.

    With `no_gpu`, the workers without a GPU are called for its jobs too.
    """
    sent = 0
    waiting = store.lines()
    counts = {queue: sum(n for name, n in waiting.items() if name.startswith(f"{queue}/")) for queue in Queue}
    if no_gpu:
        counts[Queue.CPU] += counts[Queue.GPU]
    for queue, jobs in counts.items():
        missing = min(jobs - store.messages(_KEYS + queue.value), MOST_TOPPED_UP) if jobs else 0
        for _ in range(missing):
            send(app, "", queue.value)
        sent += max(0, missing)
    return sent


def compare_queue(queue: str) -> str:
    """The queue of comparisons that the workers of `queue` take: never behind the jobs that wait there."""
    return f"compare-{queue}"


def send_comparison(app: Celery, comparison_id: str, queue: str, expires: float) -> None:
    """Have a worker of `queue` run a comparison within `expires` seconds, or nobody."""
    app.send_task(COMPARE, args=[comparison_id], queue=compare_queue(queue), expires=expires)


def send_look(app: Celery, model: str) -> None:
    """Have the watches look at a model that may have changed."""
    app.send_task(LOOK, args=[model], queue=WATCH)
