"""What is done to a deployment while a job runs, and what may come of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random

import psutil

from benchmarks.chaos.cluster import LEASE, Cluster


@dataclass(frozen=True)
class Fault:
    """`strike` is a context manager: struck inside, healed after. `causes`: what a job may truly fail of.

    `needs_child`: only stages in which a child process runs can be struck.
    """

    name: str
    strike: Callable[[Cluster, Random], object]
    causes: frozenset[str] = frozenset()
    needs_child: bool = False


@contextmanager
def kill_child(cluster: Cluster, random: Random) -> Iterator[None]:
    for child in cluster.a.children():
        with suppress(psutil.NoSuchProcess):
            child.kill()
    yield


@contextmanager
def kill_worker(cluster: Cluster, random: Random) -> Iterator[None]:
    assert cluster.a.process is not None
    cluster.a.process.kill()
    cluster.a.process.wait()
    yield
    cluster.a.start()


@contextmanager
def stop_worker(cluster: Cluster, random: Random) -> Iterator[None]:
    cluster.a.stop()
    yield
    cluster.a.start()


@contextmanager
def kill_redis(cluster: Cluster, random: Random) -> Iterator[None]:
    cluster.kill_redis()
    time.sleep(random.uniform(0.0, 1.5))
    cluster.start_redis()
    yield


@contextmanager
def cut_network(cluster: Cluster, random: Random) -> Iterator[None]:
    cluster.proxy.cut.set()
    time.sleep(LEASE + random.uniform(1.0, 3.0))
    yield
    cluster.proxy.cut.clear()


@contextmanager
def pause_worker(cluster: Cluster, random: Random) -> Iterator[None]:
    os.kill(cluster.a.pid, signal.SIGSTOP)
    time.sleep(LEASE + random.uniform(1.0, 3.0))
    yield
    os.kill(cluster.a.pid, signal.SIGCONT)


@contextmanager
def hub_fails(cluster: Cluster, random: Random) -> Iterator[None]:
    what = random.choice(({"status": 500}, {"status": 429, "headers": {"Retry-After": "1"}}, {"cut": 10}))
    cluster.hub.fail(".", times=random.choice((1, 3, 30)), **what)
    yield
    time.sleep(1.0)
    cluster.hub.faults.clear()


@contextmanager
def fill_disk(cluster: Cluster, random: Random) -> Iterator[None]:
    filler = cluster.a.data / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * (1 << 16))
    yield
    time.sleep(1.0)
    filler.unlink(missing_ok=True)


@contextmanager
def clock_jumps(cluster: Cluster, random: Random) -> Iterator[None]:
    cluster.a.clock.write_text(str(random.choice((-86400, -60, 60, 86400))))
    yield
    time.sleep(1.0)
    cluster.a.clock.write_text("0")


FAULTS = (
    Fault("kill -9 child", kill_child, frozenset({"killed"}), needs_child=True),
    Fault("kill -9 worker", kill_worker),
    Fault("SIGTERM worker", stop_worker),
    Fault("kill -9 Redis", kill_redis),
    Fault("network cut", cut_network),
    Fault("worker paused", pause_worker),
    Fault("Hub faults", hub_fails, frozenset({"hub", "request"})),
    Fault("disk full", fill_disk, frozenset({"disk"})),
    Fault("clock jump", clock_jumps),
)
"""The death of the web process is a fault of submitting, not of a stage: see `run.kill_web`."""
