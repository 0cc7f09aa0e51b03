"""What the processes write down: each line knows its job, and no line holds a token."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SECRETS = re.compile(r"hf_[A-Za-z0-9]{6,}|(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(job)s%(message)s"

_job: ContextVar[str | None] = ContextVar("job", default=None)


@contextmanager
def job_in_logs(job_id: str) -> Iterator[None]:
    """What this thread logs in the block is about this job."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


def blot(text: str) -> str:
    """The text with anything that looks like a Hub token, or a password in an address, blotted out."""
    return SECRETS.sub(lambda match: "hf_***" if match[0].startswith("hf_") else "***", text)


class TextFormatter(logging.Formatter):
    """One line for people, with the job's id where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        job = _job.get()
        record.job = f"job {job}: " if job else ""
        return blot(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (unix seconds), level, logger, message; job and error where known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (job := _job.get()) is not None:
            line["job"] = job
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return blot(json.dumps(line, ensure_ascii=False))


def set_up_logs(*, as_json: bool) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Celery's say that a task was sent, came and went: every ten seconds for each that looks after jobs.
    celery = ("celery.beat", "celery.worker.strategy", "celery.app.trace")
    for chatty in ("httpx", "httpx2", "httpcore", "urllib3", *celery):
        logging.getLogger(chatty).setLevel(logging.WARNING)
