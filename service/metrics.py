"""What Prometheus is told: read from Redis at each scrape, so that every process tells the same of all.

The scripts that change jobs count what happens in the hash `tricksmith:metrics` (names with `|` between name
and label); the rest is looked up: what waits, what runs, who lives.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service.job_scripts import BUCKETS
from service.jobs import JobStore, State
from service.registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServiceCollector(Collector):
    """All metrics of one service."""

    def __init__(self, store: JobStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Ask Redis, and tell."""
        counts = self._store.counts()
        yield from _counters(counts)
        yield from _histograms(counts)
        yield from self._jobs()
        yield from self._workers()

    def _jobs(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "tricksmith_jobs_waiting", "Jobs that wait, by lane", labels=["queue", "who", "size"]
        )
        for lane, number in self._store.lines().items():
            waiting.add_metric(lane.split("/"), number)
        yield waiting
        yield GaugeMetricFamily("tricksmith_jobs_running", "Jobs that run", len(self._store.running()))
        oldest = self._store.oldest_waiting()
        yield GaugeMetricFamily(
            "tricksmith_oldest_waiting_seconds", "For how long the first job in line has waited", oldest
        )

    def _workers(self) -> Iterator[Metric]:
        names = {
            "places": "Jobs that a worker may run at a time",
            "running": "Jobs that run at a worker",
            "gpus": "GPUs that a worker may use",
            "gpus_busy": "GPUs that a worker's jobs hold",
            "disk_free": "Free bytes of a worker's data folder",
            "cache_bytes": "Bytes of a worker's cached sources",
        }
        workers = self._registry.workers()
        yield GaugeMetricFamily("tricksmith_workers", "Workers that live", len(workers))
        for name, text in names.items():
            family = GaugeMetricFamily(f"tricksmith_worker_{name}", text, labels=["worker", "host"])
            for about in workers:
                family.add_metric([about.id, about.host], getattr(about, name))
            yield family
        silent = GaugeMetricFamily(
            "tricksmith_worker_silent_seconds", "Since a worker last spoke", labels=["worker", "host"]
        )
        for about in workers:
            silent.add_metric([about.id, about.host], max(0.0, time.time() - about.at))
        yield silent


def _counters(counts: dict[str, float]) -> Iterator[Metric]:
    yield CounterMetricFamily("tricksmith_jobs_submitted", "Jobs accepted", counts.get("submitted", 0))
    yield CounterMetricFamily(
        "tricksmith_source_bytes", "Bytes of the sources of published jobs", counts.get("bytes", 0)
    )
    # Those that there will be begin at 0: the first one must not look as if it had always been there.
    for name, label, text, known in (
        ("jobs", "state", "Jobs that ended, by how", [state.value for state in State if state.final]),
        ("failures", "cause", "Failed jobs, by what kind of thing went wrong", []),
        ("verdicts", "verdict", "Verdicts", ["equivalent", "within budget", "different"]),
        ("lost", "kind", "Attempts that ended with their worker's silence", ["worker"]),
    ):
        family = CounterMetricFamily(f"tricksmith_{name}", text, labels=[label])
        told = {key.partition("|")[2]: value for key, value in counts.items() if key.startswith(f"{name}|")}
        for of, value in (dict.fromkeys(known, 0.0) | told).items():
            family.add_metric([of], value)
        yield family


def _histograms(counts: dict[str, float]) -> Iterator[Metric]:
    """`wait_seconds|bucket|0.1`, `stage_seconds|verify|sum` and the like, as the scripts count them."""
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"buckets": {}, "sum": 0.0})
    for key, value in counts.items():
        words = key.split("|")
        if words[0] not in ("wait_seconds", "stage_seconds"):
            continue
        label = words[1] if words[0] == "stage_seconds" else ""
        if words[-1] == "sum":
            found[words[0], label]["sum"] = value
        else:
            found[words[0], label]["buckets"][words[-1]] = value
    wait = HistogramMetricFamily("tricksmith_wait_seconds", "From submitted to begun")
    stage = HistogramMetricFamily("tricksmith_stage_seconds", "In a stage", labels=["stage"])
    for (name, label), data in sorted(found.items()):
        labels = [label] if name == "stage_seconds" else []
        (stage if labels else wait).add_metric(labels, _cumulative(data["buckets"]), data["sum"])
    yield wait
    yield stage


def _cumulative(buckets: dict[str, float]) -> list[tuple[str, float]]:
    """Every edge, counted or not: a quantile is wrong where edges come and go."""
    total, result = 0.0, []
    for edge in BUCKETS:
        total += buckets.get(f"{edge:g}", 0.0)
        result.append((f"{edge:g}", total))
    return [*result, ("+Inf", total + buckets.get("inf", 0.0))]


def exposition(store: JobStore, registry: Registry) -> bytes:
    """The metrics as Prometheus reads them."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(ServiceCollector(store, registry))
    return generate_latest(collectors)
