"""`make bench-service`: many submits by many users, then a part of the jobs drained to the end.

1. Users submit (a 100 kB model in a folder, to folders), arriving at random at a fixed mean rate; a submit's
   time counts from its arrival, so that waiting behind others counts too. While they do, and while workers
   work, a real web process (`tricksmith serve --workers 0`) is asked for its pages, as open browsers ask.
2. Workers drain the first jobs. The overhead per job is the time between the moment at which its worker took
   it and its end, less the stages convert, verify and publish, as the job's own events tell them. Every
   published job's folder is then looked at, and nothing else may lie beside them.
3. Details are retired, and what a job then takes of Redis is measured.
4. Throughput with 1, 2, ... workers.

Prints every figure with its target, writes benchmarks/results/service.json and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import redis

from benchmarks.service.pages import Pages
from service.api import Service
from service.jobs import PREFIX, Job, JobStore, State
from service.queue import make_app, top_up
from service.redis_server import running_redis
from service.registry import Registry
from service.retention import retire
from service.settings import Settings
from tests.hub_models import small_llama

RESULTS = Path(__file__).parents[1] / "results"
TELL_EVERY = 10.0  # seconds
PAGES_MS = 200.0  # p99 of each page
MEASURED_APART = ("convert", "verify", "publish")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def submit_all(
    service: Service, model: Path, out: Path, jobs: int, users: int, rate: float, seed: int
) -> tuple[dict[str, float], list[str]]:
    """Submit at `rate` per second; the times in ms, and the accepted ids in their order."""
    random = Random(seed)
    times: list[float] = []
    accepted: list[str] = []
    lock = threading.Lock()

    def submit(number: int, due: float) -> None:
        job = service.submit(
            str(model), ["flashnorm"], str(out / f"{number}"), user=f"user-{random.randrange(users)}"
        )
        with lock:
            times.append((time.monotonic() - due) * 1000)
            accepted.append(job.id)

    started = time.monotonic()
    due = started
    with ThreadPoolExecutor(max_workers=16) as pool:
        for number in range(jobs):
            due += random.expovariate(rate)
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            pool.submit(submit, number, due)
            if number % 1000 == 999:
                print(f"  {number + 1} submitted, {time.monotonic() - started:.0f} s", flush=True)
    if len(accepted) != jobs:
        raise RuntimeError(f"{jobs - len(accepted)} submits failed")
    figures = {
        "submits": jobs,
        "users": users,
        "per_second": jobs / (time.monotonic() - started),
        "median_ms": statistics.median(times),
        "p99_ms": percentile(times, 0.99),
        "max_ms": max(times),
    }
    return figures, accepted


@contextmanager
def workers(settings: Settings, count: int) -> Iterator[None]:
    """`count` worker processes of one place each, ready to take jobs."""
    env = os.environ | {"REDIS_URL": settings.redis_url or "", "OMP_NUM_THREADS": "1"}
    running = []
    with (settings.data / "workers.log").open("ab") as log:
        for number in range(count):
            data = settings.data / f"host-{number}"
            data.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "workers.main", "worker", "--data", str(data)]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
    registry = Registry(settings.redis_url or "")
    try:
        pids = {process.pid for process in running}
        while not pids <= {about.pid for about in registry.workers()}:
            time.sleep(0.2)
        registry.close()
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


def drain(store: JobStore, count: int) -> float:
    """Wait until `count` more jobs are final; their number per second, from the first to the last."""
    before = finished(store)
    first: float | None = None
    told = time.monotonic()
    while True:
        done = finished(store) - before
        now = time.monotonic()
        if done and first is None:
            first, at_first = now, done
        if done >= count:
            assert first is not None
            return (done - at_first) / max(1e-9, now - first)
        if now - told > TELL_EVERY:
            told = now
            print(f"  {done} of {count} done", flush=True)
        time.sleep(0.05)


def finished(store: JobStore) -> int:
    """How many jobs have ended."""
    return sum(int(number) for name, number in store.counts().items() if name.startswith("jobs|"))


def pace(jobs: Sequence[Job], count: int, parts: int = 5) -> list[float]:
    """Jobs per second over the first `count` ends, in equal `parts`: a history that costs shows here."""
    ends = sorted(job.finished for job in jobs if job.finished is not None)[:count]
    edges = [round(n * (len(ends) - 1) / parts) for n in range(parts + 1)]
    return [(b - a) / max(1e-9, ends[b] - ends[a]) for a, b in pairwise(edges)]


def wrongly_there(jobs: Sequence[Job], out: Path) -> list[str]:
    """Published jobs whose folder is not whole, and folders that no published job speaks of."""
    published = {Path(job.to) for job in jobs if job.state is State.PUBLISHED}
    papers = ("conversion.json", "evidence.json", "README.md", "model.safetensors")
    lost = [f"{to} is not whole" for to in published if not all((to / name).is_file() for name in papers)]
    return lost + [f"{folder} is nobody's" for folder in out.iterdir() if folder not in published]


def overhead(store: JobStore, job: Job) -> float:
    """Seconds of a job's run that its stages convert, verify and publish do not account for."""
    marks = [
        (event.stage or event.state or "", event.at)
        for event in store.events(job.id)
        if event.kind in ("state", "stage")
    ]
    begun = max(index for index, (name, _) in enumerate(marks) if name == "running")
    run = marks[begun:]
    apart = sum(later[1] - earlier[1] for earlier, later in pairwise(run) if earlier[0] in MEASURED_APART)
    return run[-1][1] - run[0][1] - apart


def memory_per_job(url: str, store: JobStore, jobs: Sequence[Job]) -> dict[str, float]:
    """Bytes of Redis per job of all keys with its id, after its details are retired."""
    retire(store, details=0, records=1e9)
    while retire(store, details=0, records=1e9)[0]:
        pass
    client = redis.Redis.from_url(url, decode_responses=True)
    sizes = []
    for job in jobs:
        keys = [f"{PREFIX}job:{job.id}", f"{PREFIX}job:{job.id}:events", f"{PREFIX}job:{job.id}:papers"]
        sizes.append(sum(client.memory_usage(key) or 0 for key in keys))
    lists = sum(client.memory_usage(f"{PREFIX}{name}", samples=0) or 0 for name in ("jobs", "finished"))
    total = max(1, client.zcard(f"{PREFIX}jobs"))
    client.close()
    return {"largest": max(sizes), "in_lists": lists / total}


def plot(throughput: dict[int, float], cores: int, path: Path) -> None:
    """Jobs per second against workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    axes.plot(list(throughput), list(throughput.values()), marker="o")
    axes.axvline(cores, linestyle=":", color="grey", label=f"{cores} cores")
    axes.set(xlabel="workers", ylabel="jobs per second", ylim=(0, None), title="100 kB model, to the end")
    axes.set_xticks(list(throughput))
    axes.legend()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code: 1 where a job was lost or a target missed."""
    parser = argparse.ArgumentParser(prog="make bench-service", description=__doc__)
    parser.add_argument("--submits", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--rate", type=float, default=80.0, help="submits per second, on average")
    parser.add_argument("--drain", type=int, default=1000, help="jobs to run to the end")
    parser.add_argument("--scaling", type=int, default=60, help="jobs per number of workers; 0 for none")
    parser.add_argument("--most-workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-results", action="store_true")
    options = parser.parse_args(argv)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="tricksmith-bench-") as scratch:
        folder = Path(scratch)
        model = small_llama(folder / "model")
        settings = Settings(data=folder / "data")
        with running_redis(settings) as url:
            settings = replace(settings, redis_url=url)
            document = measure(settings, url, model, folder / "out", options)
    document |= {"cores": cores, "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document, indent=2))
    if not options.no_results:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "service.json").write_text(json.dumps(document, indent=2) + "\n")
        if document["throughput"]:
            plot(document["throughput"], cores, RESULTS / "service.svg")
    for name, met in document["targets"].items():
        print(f"{'met   ' if met else 'MISSED'} {name}")
    return 0 if all(document["targets"].values()) else 1


def measure(
    settings: Settings, url: str, model: Path, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """All figures."""
    out.mkdir()
    store, app = JobStore(url), make_app(url)
    with Service(settings) as service:
        with Pages(settings, service) as pages:
            print(f"submitting {options.submits} at {options.rate:g} per second", flush=True)
            submits, accepted = submit_all(
                service, model, out, options.submits, options.users, options.rate, options.seed
            )
            at_submit = pages.told()
            print(f"draining {options.drain} with {os.cpu_count()} workers", flush=True)
            with workers(settings, os.cpu_count() or 1):
                pages.told()
                rate = drain(store, options.drain)
                at_work = pages.told()
        ended = [job for job in map(store.get, accepted) if job.state.final]
        overheads = [overhead(store, job) for job in ended if job.state is State.PUBLISHED]
        throughput: dict[int, float] = {}
        for count in range(1, options.most_workers + 1) if options.scaling else ():
            top_up(app, store)
            with workers(settings, count):
                throughput[count] = drain(store, options.scaling)
            print(f"\n  {count} workers: {throughput[count]:.2f} jobs/s", flush=True)
    jobs = [store.get(job_id) for job_id in accepted]
    states = Counter(job.state.value for job in jobs)
    lost = wrongly_there(jobs, out)
    redis_bytes = memory_per_job(url, store, ended)
    store.close()
    app.close()
    slowest = max(figures["p99_ms"] for when in (at_submit, at_work) for figures in when.values())
    return {
        "submit": submits,
        "pages": {"while submits come": at_submit, "while workers work": at_work},
        "states": states,
        "lost": lost,
        "drained_per_second": rate,
        "drained_per_second_by_fifths": pace(ended, options.drain),
        "overhead_seconds": {"median": statistics.median(overheads), "p95": percentile(overheads, 0.95)},
        "redis_bytes_per_job": redis_bytes,
        "throughput": throughput,
        "targets": {
            "submit p99 under 100 ms": submits["p99_ms"] < 100,
            "no lost or failed job": not lost and not states["failed"],
            f"pages p99 under {PAGES_MS:g} ms": slowest < PAGES_MS,
            "overhead per job under 300 ms (median)": statistics.median(overheads) < 0.3,
            "under 4 KB of Redis per job after retention": sum(redis_bytes.values()) < 4096,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
