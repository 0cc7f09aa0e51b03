"""One lm-eval task on both models, paired document by document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from evals.statistics import mcnemar, paired_mean, paired_proportion, tost


@dataclass(frozen=True)
class Metric:
    """One figure of a task on both models.

    `source` and `converted` are the scores as lm-eval aggregates them. The rest is paired over the documents,
    and None where the metric is none per document: `difference` (converted minus source) of the means, or for
    perplexities of the mean loss in nats per word or byte, with its 95 % interval; `gained` and `lost`,
    documents that turned right and wrong, with the exact McNemar p value, for figures that are 0 or 1;
    `equivalence`, the TOST p value against ±`margin`; `detectable`, the true difference that this many
    documents would have shown four times in five.
    """

    name: str
    source: float
    converted: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    gained: int | None = None
    lost: int | None = None
    mcnemar: float | None = None
    chance: float | None = None
    margin: float | None = None
    equivalence: float | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """A task's metrics, and how far the single log-likelihoods or texts moved.

    `likelihoods` are the quantiles (least, 1 %, 25 %, median, 75 %, 99 %, largest) of converted minus source
    over all `requests` that ask for a log-likelihood, in nats; `same_texts` the share of generated texts that
    are the same.
    """

    task: str
    version: str
    documents: int
    fewshot: int
    metrics: tuple[Metric, ...]
    requests: int = 0
    likelihoods: tuple[float, ...] = ()
    same_texts: float | None = None
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> TaskResult:
        """The inverse of `to_json`."""
        metrics = tuple(Metric(**{k: _number(v) for k, v in m.items()}) for m in data["metrics"])
        likelihoods = tuple(float(x) for x in data["likelihoods"])
        return TaskResult(**(data | {"metrics": metrics, "likelihoods": likelihoods}))


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


@dataclass(frozen=True)
class Run:
    """What one model did on one task: scores by metric, and per document what was asked, said and counted.

    `asked` are digests of each document's requests, which must be the same for both models. `values` maps a
    metric to one entry a document. `said` are the responses: log-likelihoods, or texts.
    """

    task: str
    version: str
    fewshot: int
    scores: dict[str, float]
    asked: list[str]
    values: dict[str, list[Any]]
    likelihoods: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


QUANTILES = (0, 0.01, 0.25, 0.5, 0.75, 0.99, 1)


def pair(source: Run, converted: Run, margin: float, cached: bool = False) -> TaskResult:
    """Join two runs of the same requests.

    Raises:
        ValueError: they were not asked the same.
    """
    if source.asked != converted.asked:
        raise ValueError(f"{source.task}: the two models were not asked the same")
    moved = np.subtract(converted.likelihoods, source.likelihoods) if source.likelihoods else np.zeros(0)
    same = [a == b for a, b in zip(source.texts, converted.texts, strict=True)]
    return TaskResult(
        task=source.task,
        version=source.version,
        documents=len(source.asked),
        fewshot=source.fewshot,
        metrics=tuple(
            _metric(name, score, converted.scores[name], source.values, converted.values, margin)
            for name, score in source.scores.items()
        ),
        requests=len(moved),
        likelihoods=tuple(float(np.quantile(moved, q)) for q in QUANTILES) if len(moved) else (),
        same_texts=sum(same) / len(same) if same else None,
        cached=cached,
    )


def _metric(
    name: str,
    before: float,
    after: float,
    source: dict[str, list[Any]],
    converted: dict[str, list[Any]],
    margin: float,
) -> Metric:
    a, b = source.get(name), converted.get(name)
    if a and b and all(map(_weighted, a)) and all(map(_weighted, b)):
        return _perplexity(name, before, after, a, b, margin)
    if not a or not b or not _numbers(a) or not _numbers(b):
        return Metric(name, before, after)
    if set(a) | set(b) <= {0, 1}:
        gained = sum(y > x for x, y in zip(a, b, strict=True))
        lost = sum(x > y for x, y in zip(a, b, strict=True))
        estimate = paired_proportion(gained, lost, len(a))
        p: float | None = mcnemar(gained, lost)
        chance = p
        equivalence = tost(estimate, margin, centre=(gained - lost) / (len(a) + 2))
    else:
        gained, lost, p = None, None, None
        differences = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
        estimate = paired_mean(differences)
        chance = None if len(a) < 2 else _t_test(estimate.mean, estimate.error, estimate.freedom)
        equivalence = tost(estimate, margin) if len(a) > 1 else math.nan
    return Metric(
        name,
        before,
        after,
        estimate.mean,
        estimate.low,
        estimate.high,
        gained,
        lost,
        p,
        chance,
        margin,
        equivalence,
        estimate.detectable,
    )


def _perplexity(name: str, before: float, after: float, a: list[Any], b: list[Any], margin: float) -> Metric:
    """From log-likelihoods with the number of words or bytes they are of: the difference in nats of each.

    The mean over all words is a ratio of two sums over documents; its error is the linearised one.
    """
    losses = np.array([x[0] - y[0] for x, y in zip(a, b, strict=True)], dtype=np.float64)
    sizes = np.array([x[1] for x in a], dtype=np.float64)
    mean = float(losses.sum() / sizes.sum())
    residuals = (losses - mean * sizes) * len(sizes) / sizes.sum()
    spread = paired_mean(residuals)
    estimate = dataclasses.replace(spread, mean=mean, low=mean + spread.low, high=mean + spread.high)
    chance = _t_test(mean, estimate.error, estimate.freedom) if len(a) > 1 else None
    equivalence = tost(estimate, margin) if len(a) > 1 else math.nan
    return Metric(
        name,
        before,
        after,
        mean,
        estimate.low,
        estimate.high,
        chance=chance,
        margin=margin,
        equivalence=equivalence,
        detectable=estimate.detectable,
    )


def _weighted(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and _numbers(value)


def _t_test(mean: float, error: float, freedom: float) -> float:
    from scipy import stats

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean / error), freedom))


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
