"""Evidence: the measured comparison of source and converted model, with the verdict that follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from evals.generation import Generation
from evals.logits import LogitDifference
from evals.perplexity import Perplexity
from evals.verdict import Check, Verdict

SCHEMA = 1


@dataclass(frozen=True)
class Evidence:
    """What was measured, the limits it was held to, and the verdict.

    `floor`, `wide` and `storage` are compared with one reference, the source in the wider dtype (see
    `evals.verdict`); they are None only where the two models cannot be run on the same tokens. `reasons` say
    why the verdict is `different`; `notes` what a reader should know besides. `tasks` maps an lm-eval task
    and metric to the source's and the converted model's score.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    floor: LogitDifference | None = None
    wide: LogitDifference | None = None
    storage: LogitDifference | None = None
    perplexity: Perplexity | None = None
    generation: Generation | None = None
    tasks: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

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
            ValueError: written by a later version, or not evidence at all.
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
                floor=_logits(data["floor"]),
                wide=_logits(data["wide"]),
                storage=_logits(data["storage"]),
                perplexity=_perplexity(data["perplexity"]),
                generation=None if data["generation"] is None else Generation(**data["generation"]),
                tasks=data["tasks"],
                settings=data["settings"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no evidence: {error}") from error

    def headline(self) -> list[tuple[str, str]]:
        """The figures that matter, (name, value) in words for people."""
        lines: list[tuple[str, str]] = []
        wide_name, storage_name = self.settings.get("wide_dtype", ""), self.settings.get("storage_dtype", "")
        if self.wide and self.floor and self.storage:
            lines += [
                (f"KL divergence in {wide_name}", self._against_limit(0, " nats/token")),
                (f"largest logit difference in {wide_name}", self._against_limit(2, "")),
                (f"KL divergence in {storage_name}", self._against_limit(4, " nats/token")),
                (
                    "the source's own rounding noise",
                    f"{self.floor.divergence:.2e} nats/token ({storage_name} against {wide_name})",
                ),
                (
                    "same best token",
                    f"{self.wide.top1:.2%} of {self.wide.positions} positions "
                    f"(source in {storage_name}: {self.floor.top1:.2%})",
                ),
            ]
        if self.perplexity:
            p = self.perplexity
            lines.append(
                (
                    "perplexity",
                    f"{p.source:.4f} source, {p.converted:.4f} converted ({p.difference:+.1e} nats/token)",
                )
            )
        if self.generation:
            lines.append(("greedy generation", describe_generation(self.generation)))
        for task, metrics in self.tasks.items():
            for metric, scores in metrics.items():
                lines.append(
                    (
                        f"{task} {metric}",
                        f"{scores['source']:.4f} source, {scores['converted']:.4f} converted",
                    )
                )
        return lines

    def _against_limit(self, check: int, unit: str) -> str:
        measured = self.checks[check]
        return f"{measured.value:.2e}{unit} (limit {measured.limit:.2e})"


def describe_generation(generation: Generation) -> str:
    """One line on the greedy texts."""
    scale = f"{generation.prompts} prompts of {generation.new_tokens} new tokens"
    if generation.identical:
        return f"identical ({scale})"
    return (
        f"{generation.same} of {generation.prompts} identical ({scale}); first divergence at new token "
        f"{generation.first_divergence}, where the source's choice led by {generation.lead:.2g} at most"
    )


def _logits(data: dict[str, Any] | None) -> LogitDifference | None:
    if data is None:
        return None
    numbers = {"largest", "mean", "rms", "divergence", "largest_divergence", "top1"}
    fields: dict[str, Any] = {key: float(value) if key in numbers else value for key, value in data.items()}
    return LogitDifference(**fields)


def _perplexity(data: dict[str, Any] | None) -> Perplexity | None:
    if data is None:
        return None
    fields: dict[str, Any] = {key: value if key == "tokens" else float(value) for key, value in data.items()}
    return Perplexity(**fields)


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
