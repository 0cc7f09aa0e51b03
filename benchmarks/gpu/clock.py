"""Times on a CUDA card: CUDA events around replays of a CUDA graph, medians.

A copy runs in front of each replay. While it does, the host queues what is timed, so that a time is the
card's and not the host's; and it leaves nothing of the call's in the second cache, as the other layers of a
model would leave nothing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers


class Budget:
    """Seconds that a run may take; a part asks before each row of its table."""

    def __init__(self) -> None:
        self._end = float("inf")

    def start(self, minutes: float) -> None:
        """From now on."""
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds, `inf` where there is no limit."""
        return self._end - time.monotonic()


BUDGET = Budget()
_BUSY = 1 << 29  # bytes that the copy takes: ten times the cache, and a tenth of a millisecond


def card() -> dict[str, Any]:
    """What was measured on: card, driver's and libraries' versions."""
    there = torch.cuda.get_device_properties(0)
    return {
        "card": there.name,
        "memory_bytes": there.total_memory,
        "multiprocessors": there.multi_processor_count,
        "capability": f"{there.major}.{there.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def captured(call: Callable[[], Any], warm: int = 3) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median milliseconds of one call inside a CUDA graph; of one plain call where there is no card."""
    return side_by_side([call], repeats)[0]


def side_by_side(calls: list[Callable[[], Any]], repeats: int = 20) -> list[float]:
    """Median milliseconds of each call, replayed in turns so that a card that warms up favours none."""
    if not torch.cuda.is_available():
        return [_once(call) for call in calls]
    graphs = [captured(call) for call in calls]
    busy = torch.empty(2, _BUSY // 2, dtype=torch.uint8, device="cuda")
    spans: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 5):
        for graph, taken in zip(graphs, spans, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            busy[1].copy_(busy[0])
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if turn >= 5:
                taken.append(start.elapsed_time(end))
    for graph in graphs:
        graph.reset()
    return [sorted(taken)[len(taken) // 2] for taken in spans]


def _once(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def copy_bandwidth() -> float:
    """Bytes per second that a large elementwise copy reads and writes."""
    x = torch.randn(1 << 29, dtype=torch.float32, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.nbytes / milliseconds(lambda: torch.neg(x, out=y)) * 1e3


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance of a from b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
