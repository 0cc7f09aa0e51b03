"""A comparison that somebody watches: both models are brought here, and a child process runs them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import redis

from service.comparing import Comparison, Comparisons, check_job
from service.fetch import fetch
from service.jobs import Job
from service.logs import job_in_logs
from service.publish import is_folder
from service.source import Source, resolve
from tricks import BadInput, Cancelled, TricksmithError, silent
from workers.gpus import NO_GPU
from workers.process import ChildProcess
from workers.run import one_line
from workers.worker import Worker
from workers.workspace import MARGIN, Workspace

log = logging.getLogger(__name__)

_REQUEST = re.compile(r"/discussions/(\d+)$")


def run_comparison(worker: Worker, comparison_id: str) -> None:
    """Run it and tell what comes; whatever goes wrong is told too."""
    kept = Comparisons(worker.store.url)
    try:
        comparison = kept.claim(comparison_id)
        if comparison is None:
            return
        with job_in_logs(comparison.job):
            _run(worker, kept, comparison)
    except redis.RedisError as error:
        log.error("comparison %s: Redis does not answer: %s", comparison_id, type(error).__name__)
    finally:
        kept.close()


def _run(worker: Worker, kept: Comparisons, comparison: Comparison) -> None:
    until = time.monotonic() + kept.left(comparison)

    def stops() -> bool:
        return worker.stops.is_set() or time.monotonic() > until

    def wait() -> None:
        if stops():
            raise Cancelled("cancelled")

    try:
        kept.tell(comparison, {"state": "running"})
        with ExitStack() as stack:
            _both(worker, kept, comparison, stops, wait, stack)
    except Cancelled:
        kept.end(comparison, "failed", "it took too long, or its worker stopped; compare again")
    except TricksmithError as error:
        kept.end(comparison, "failed", one_line(str(error)))
    except redis.RedisError:
        raise
    except Exception as error:
        log.exception("comparison %s failed", comparison.id)
        kept.end(comparison, "failed", one_line(f"{type(error).__name__}: {error}"))
    else:
        kept.end(comparison, "done")
    finally:
        worker.vault.forget(comparison.id)


def _both(
    worker: Worker,
    kept: Comparisons,
    comparison: Comparison,
    stops: Callable[[], bool],
    wait: Callable[[], None],
    stack: ExitStack,
) -> None:
    job = worker.store.get(comparison.job)
    check_job(job)
    token = worker.vault.token(replace(job, id=comparison.id, user=comparison.user, operator_token=False))
    source, converted = _source(job, token), _result(job, token)
    space = stack.enter_context(Workspace(worker.settings.work, comparison.id))
    stack.callback(space.clear)

    def brought(what: Source, name: str) -> Path:
        if what.folder is None and worker.cache.keeps(what):
            return stack.enter_context(worker.cache.held(what, silent, wait, token))
        space.reserve(what.size_bytes if what.folder is None else 0, f"comparing {what.model}", wait)
        return fetch(what, space.folder / name, token, report=lambda *_: wait())

    folders = brought(source, "source"), brought(converted, "converted")
    gpu = stack.enter_context(worker.gpus.one(wait)) if worker.gpus.names else NO_GPU
    allowed = worker.allowance(MARGIN, gpu)
    child = stack.enter_context(
        ChildProcess(worker.forks, space.folder, stops, worker.settings.grace, allowed, space.lock)
    )
    child.ask(
        "write",
        silent,
        tell=lambda told: kept.tell(comparison, told),
        source=str(folders[0]),
        converted=str(folders[1]),
        prompt=comparison.prompt,
        new=comparison.new,
    )


def _source(job: Job, token: str | None) -> Source:
    """The job's source, as long as it is what the job converted."""
    said = job.source or {}
    reference = said.get("folder") or f"{said.get('model')}@{said.get('commit')}"
    found = resolve(reference, token)
    if found.folder is not None and "files" in said and found.key != Source.from_json(said).key:
        raise BadInput(f"the files in {found.folder} changed since they were converted; convert them again")
    return found


def _result(job: Job, token: str | None) -> Source:
    """What the job published: a folder, a repo, or a pull request there."""
    assert job.result is not None
    if is_folder(job.to):
        if not Path(job.result).is_dir():
            raise BadInput(f"{job.result} is not there any more, or not on the machine of this worker")
        return resolve(job.result)
    request = _REQUEST.search(job.result)
    return resolve(f"{job.to}@refs/pr/{request[1]}" if request else job.to, token)
