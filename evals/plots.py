"""Pictures of the evidence: drawn once, used by the card, the report and the pages."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from evals.evidence import Evidence


def picture(evidence: Evidence) -> bytes | None:
    """One PNG of up to four panels; None where there is nothing to draw.

    Per-token loss of source against converted, divergence over the position in the window, error of the
    residual stream by layer, and documents that flipped in each task.
    """
    tasks = [task for task in evidence.tasks if any(metric.gained is not None for metric in task.metrics)]
    wanted: list[tuple[Callable[[Any, Any], None], Any]] = [
        (_losses, evidence.series.get("losses")),
        (_positions, evidence if evidence.series.get("positions") else None),
        (_layers, evidence.series.get("layers")),
        (_flips, tasks),
    ]
    panels = [(draw, data) for draw, data in wanted if data]
    if not panels:
        return None
    # Drawn without pyplot: its global state belongs to whoever runs us.
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 3.6 * rows), dpi=90, layout="constrained")
    for place, (draw, data) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, data)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()


def _losses(axes: Any, pairs: list[list[float]]) -> None:
    source, converted = zip(*pairs, strict=True)
    most = max(*source, *converted)
    axes.plot([0, most], [0, most], color="0.7", linewidth=1, zorder=0)
    axes.scatter(source, converted, s=6, alpha=0.6, linewidths=0)
    axes.set(xlabel="source, nats", ylabel="converted, nats", title="Loss of single tokens")


def _positions(axes: Any, evidence: Evidence) -> None:
    rows = evidence.series.get("positions") or []
    if rows:
        at, mean, largest = zip(*rows, strict=True)
        axes.plot(at, mean, label="mean")
        axes.plot(at, largest, label="largest", linewidth=1)
    if evidence.floor is not None:
        axes.axhline(evidence.floor.divergence, color="0.5", linestyle="--", label="source's own noise")
    if any(value > 0 for row in rows for value in row[1:]):
        axes.set_yscale("log")
    axes.set(xlabel="position in the window", ylabel="nats", title="KL divergence, source to converted")
    axes.legend(frameon=False, fontsize=8)


def _layers(axes: Any, rows: list[list[float]]) -> None:
    converted, floor = zip(*rows, strict=True)
    axes.plot(converted, marker="o", markersize=3, label="converted, wider type")
    axes.plot(floor, marker="o", markersize=3, color="0.5", linestyle="--", label="source's own noise")
    if any(value > 0 for row in rows for value in row):
        axes.set_yscale("log")
    axes.set(xlabel="layer", ylabel="relative error", title="Residual stream")
    axes.legend(frameon=False, fontsize=8)


def _flips(axes: Any, tasks: list[Any]) -> None:
    rows = [(task, metric) for task in tasks for metric in task.metrics if metric.gained is not None]
    names = [f"{task.task} {metric.name}"[-28:] for task, metric in rows]
    axes.barh(names, [metric.gained for _, metric in rows], label="turned right")
    axes.barh(names, [-metric.lost for _, metric in rows], label="turned wrong")
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set(title="Documents that flipped", xlabel="documents")
    axes.legend(frameon=False, fontsize=8)
