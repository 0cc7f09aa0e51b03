"""Where a job waits: three words, QUEUE/WHO/SIZE, and in which order a worker looks.

- Queue: `gpu` where a worker with a GPU should run it, else `cpu`.
- Who: `people` before `schedule`.
- Size: `large` jobs take long, so one place among the workers is kept free of them, and they get a first look
  every few turns only; neither size waits for the other for ever.

Within a lane users take turns, whoever has how many jobs there (the scripts see to that).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Queue(StrEnum):
    """Which workers may run a job: all, or those with a GPU."""

    CPU = "cpu"
    GPU = "gpu"


WHO = ("people", "schedule")
SIZES = ("small", "large")
LANES = tuple(f"{queue}/{who}/{size}" for queue in Queue for who in WHO for size in SIZES)
LARGE_LANES = tuple(name for name in LANES if name.endswith("/large"))
LARGE_FIRST_EVERY = 4  # turns


def lane(queue: Queue = Queue.CPU, *, schedule: bool = False, large: bool = False) -> str:
    """The lane's name."""
    return f"{queue.value}/{WHO[schedule]}/{SIZES[large]}"


def in_order(queues: Sequence[str], turn: int) -> list[str]:
    """The lanes of `queues` in the order in which a worker looks at its `turn`-th turn."""
    sizes = SIZES[::-1] if turn % LARGE_FIRST_EVERY == LARGE_FIRST_EVERY - 1 else SIZES
    return [f"{queue}/{who}/{size}" for who in WHO for size in sizes for queue in queues]


def large_places(places: int) -> int:
    """How many of the workers' places large jobs may take at a time: all but one, and at least one."""
    return max(1, places - 1)
