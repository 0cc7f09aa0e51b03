"""The Celery app, as everybody who sends or receives builds it.

Messages carry a job's id and nothing else: what the job is stands in its record. A message may come
twice or late; `JobStore.begin` gives the job to one worker at a time whatever the queue does. Messages
that a dead worker held come back by way of the job's lease (the `recover` task), well before Celery's
visibility timeout, which therefore is long.
"""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import urlsplit

from celery import Celery

from service.jobs import Job, JobStore

RUN = "tricksmith.run"
RECOVER = "tricksmith.recover"
POLL = "tricksmith.poll"
LOOK = "tricksmith.look"
WATCH = "watch"
"""The queue of what the watches ask for: short, and never behind a job."""
POLL_EVERY = 60.0  # seconds between two looks at which watches are due
RECOVER_EVERY = 10.0  # seconds
VISIBILITY_TIMEOUT = 24 * 3600  # seconds


class Queue(StrEnum):
    """Where a job waits: for any worker, or for one with a GPU."""

    CPU = "cpu"
    GPU = "gpu"


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
            "global_keyprefix": "tricksmith:celery:",
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


def send(app: Celery, store: JobStore, job: Job, queue: Queue = Queue.CPU) -> None:
    """Put the job's message into its queue, and note that it is there."""
    app.send_task(RUN, args=[job.id], queue=queue.value)
    store.sent(job.id)


def send_look(app: Celery, model: str) -> None:
    """Have the watches look at a model that may have changed."""
    app.send_task(LOOK, args=[model], queue=WATCH)
