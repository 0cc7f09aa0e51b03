"""Evidence: the measured comparison of source and converted model, with the verdict that follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from evals.cached import Cached
from evals.files import Weights
from evals.generation import Generation
from evals.logits import LogitDifference
from evals.perplexity import Perplexity
from evals.tasks import Metric, TaskResult
from evals.verdict import Check, Floor, Verdict

SCHEMA = 3


@dataclass(frozen=True)
class Evidence:
    """What was measured, the limits it was held to, and the verdict.

    The runs (see `evals.verdict`) are compared with one reference, the source in the wider dtype: `floors`
    are the source in its storage dtype, `rounded` with its weights stored once more, `wide` and `storage` the
    converted model in either dtype, `decode` its cached decode path (`cached` the same in the storage dtype,
    where the conversion has a cache of its own). They are None only where the two models cannot be run on the
    same tokens, or a run was left out for a reason that `notes` give. `weights` are the files held against
    their plan, where there is one. `reasons` say why the verdict is `different`. `series` holds what is
    drawn: per-token losses, divergences by position, errors by layer.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    weights: Weights | None = None
    floors: tuple[LogitDifference, ...] = ()
    rounded: LogitDifference | None = None
    wide: LogitDifference | None = None
    storage: LogitDifference | None = None
    decode: LogitDifference | None = None
    cached: Cached | None = None
    perplexity: Perplexity | None = None
    generation: Generation | None = None
    tasks: tuple[TaskResult, ...] = ()
    series: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def floor(self) -> Floor | None:
        """The source's own rounding noise; None where it was not measured."""
        return Floor.of(self.floors) if self.floors else None

    @property
    def drawable(self) -> bool:
        """Whether there is anything for a picture to show."""
        flips = any(metric.gained is not None for task in self.tasks for metric in task.metrics)
        return flips or any(self.series.get(name) for name in ("losses", "positions", "layers"))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; a number that is not finite is written as a string ("nan", "inf")."""
        data = asdict(self)
        data["checks"] = [asdict(check) | {"passed": check.passed} for check in self.checks]
        plain = _plain({"schema": SCHEMA} | data)
        assert isinstance(plain, dict)
        return plain

    @staticmethod
    def from_json(data: dict[str, Any]) -> Evidence:
        """The inverse of `to_json`.

        Raises:
            ValueError: written by another version, or not evidence at all.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"evidence of schema {data.get('schema')!r}; this version reads {SCHEMA}")
        try:
            return Evidence(
                verdict=Verdict(data["verdict"]),
                reasons=tuple(data["reasons"]),
                notes=tuple(data["notes"]),
                checks=tuple(
                    Check(c["name"], float(c["value"]), float(c["limit"]), bool(c["least"]))
                    for c in data["checks"]
                ),
                weights=Weights.from_json(data["weights"]) if data.get("weights") else None,
                floors=tuple(_record(LogitDifference, run) for run in data["floors"]),
                rounded=_optional(LogitDifference, data["rounded"]),
                wide=_optional(LogitDifference, data["wide"]),
                storage=_optional(LogitDifference, data["storage"]),
                decode=_optional(LogitDifference, data["decode"]),
                cached=_cached(data["cached"]),
                perplexity=_optional(Perplexity, data["perplexity"]),
                generation=_optional(Generation, data["generation"]),
                tasks=tuple(TaskResult.from_json(task) for task in data["tasks"]),
                series=data["series"],
                settings=data["settings"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no evidence: {error}") from error

    def headline(self) -> list[tuple[str, str]]:
        """The figures that matter, (name, value) in words for people."""
        return [*self._weight_lines(), *self._logit_lines(), *self._loss_lines(), *self._task_lines()]

    def _weight_lines(self) -> list[tuple[str, str]]:
        if self.weights is None:
            return []
        w = self.weights
        held = f"{w.values:,} numbers in {w.tensors} tensors"
        name = "weights computed again from the plan"
        if w.wrong:
            return [(name, f"{held}: not the plan's in {'; '.join(w.wrong)}")]
        same = "all equal" if w.exact == w.values else f"{w.values - w.exact:,} differ by one rounding"
        left = f"; {w.left} tensors that activations decide were not computed again" if w.left else ""
        return [(name, f"{held}: {same}{left}")]

    def _logit_lines(self) -> list[tuple[str, str]]:
        floor, wide = self.floor, self.wide
        if floor is None or wide is None:
            return []
        stored = self.settings.get("storage_dtype", "")
        lines = [
            (check.name, f"{check.value:.2e} (limit {check.limit:.2e})")
            for check in self.checks
            if check.name.startswith(("KL", "largest RMS", "median", "RMS"))
        ]
        noise = f"{floor.divergence:.2e} nats/token KL, {floor.rms:.2e} RMS (source in {stored})"
        lines.append(("the source's own rounding noise", noise))
        at = f"position {wide.largest_position}, token {wide.largest_token}"
        lines += [
            ("largest logit difference", f"{wide.largest:.2e}, at {at}"),
            ("total variation", f"{wide.total_variation:.2e}"),
            (
                "same best token, same best five",
                f"{wide.top1:.2%}, {wide.top5:.2%} of {wide.positions} positions "
                f"(source in {stored}: {self.floors[0].top1:.2%}, {self.floors[0].top5:.2%})",
            ),
        ]
        return lines

    def _loss_lines(self) -> list[tuple[str, str]]:
        lines = []
        if self.perplexity:
            p = self.perplexity
            lines += [
                (
                    "perplexity",
                    f"{p.source:.4f} source, {p.converted:.4f} converted "
                    f"({p.source_bits_per_byte:.4f}, {p.converted_bits_per_byte:.4f} bits per byte)",
                ),
                (
                    "mean loss, converted − source",
                    f"{p.difference:+.1e} nats/token, 95% interval [{p.low:+.1e}, {p.high:+.1e}]; "
                    f"within ±{p.margin:g}: {_shown(p.equivalence)}",
                ),
                (
                    "what this text could have missed",
                    f"a mean loss change below {p.detectable:.1e} nats/token",
                ),
            ]
        if self.generation:
            lines.append(("greedy generation through the cache", describe_generation(self.generation)))
        return lines + (self.cached.lines(str(self.settings["storage_dtype"])) if self.cached else [])

    def _task_lines(self) -> list[tuple[str, str]]:
        return [
            (f"{task.task} {metric.name}", describe_metric(task, metric))
            for task in self.tasks
            for metric in task.metrics
        ]


def _shown(p: float) -> str:
    return f"shown (p = {p:.1g})" if p < 0.05 else f"not shown (p = {p:.2f})"


def describe_metric(task: TaskResult, metric: Metric) -> str:
    """One line on a task's metric."""
    line = f"{metric.source:.4f} source, {metric.converted:.4f} converted"
    if metric.difference is None or metric.low is None or metric.high is None:
        return f"{line} ({task.documents} documents)"
    line += f" ({metric.difference:+.4f}, 95% interval [{metric.low:+.4f}, {metric.high:+.4f}]"
    if metric.gained is not None and metric.mcnemar is not None:
        line += f"; {metric.gained} gained, {metric.lost} lost of {task.documents}"
        line += f", McNemar p = {metric.mcnemar:.2g}"
    if metric.equivalence is not None and metric.margin is not None:
        line += f"; within ±{metric.margin:g}: {_shown(metric.equivalence)}"
    return f"{line}; detectable: {metric.detectable:.3f})"


def describe_generation(generation: Generation) -> str:
    """One line on the greedy texts."""
    scale = f"{generation.prompts} prompts of {generation.new_tokens} new tokens"
    if generation.identical:
        return f"identical ({scale})"
    return (
        f"{generation.same} of {generation.prompts} identical ({scale}); first divergence at new token "
        f"{generation.first_divergence}, where the source's choice led by {generation.lead:.2g} at most"
    )


def _optional(record: Any, data: dict[str, Any] | None) -> Any:
    return None if data is None else _record(record, data)


def _cached(data: dict[str, Any] | None) -> Cached | None:
    if data is None:
        return None
    runs = {name: _record(LogitDifference, data[name]) for name in ("source", "converted")}
    return Cached(**{**data, **runs})


def _record(record: Any, data: dict[str, Any]) -> Any:
    """A dataclass of numbers and names, with numbers written as words read back."""
    return record(
        **{key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in data.items()}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Verdict):
        return value.value
    return value
