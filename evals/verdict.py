"""From measured differences to a verdict: which limits there are, where they come from, and who keeps them.

One reference stands for the truth: the source with its stored weights in the next wider type (bfloat16 and
float16 in float32; float32 in float64). These runs are compared with it, position by position:

- *floor*: the source in its storage dtype; once in batches with the attention it loads with, once a row at a
  time with plain attention. What rounding alone does to this very model; of these and the next the worst
  counts.
- *rounded*: the source in the wider type, each weight moved by up to half a unit in the last place of the
  storage dtype. What storing exactly computed weights does: the noise that no conversion can avoid.
- *wide*: the converted model in the wider type, over the whole text.
- *storage*: the converted model in the storage dtype, as it will be used.
- *decode*: the converted model in the wider type, led token by token through its cache over what the source
  wrote.

The noise runs read a sample of the text. Where a limit is not kept, they are made again over the whole of it
before anything is said: a rare event, as an expert chosen otherwise, must be given the chance to show in the
source too.

A divergence grows with the square of a small difference, so a multiple m of the floor's divergence goes with
sqrt(m) of its RMS difference.

**Wide: divergence within 2/3 of the floor, RMS within sqrt(2/3).** Take one folded linear: rounding each of
its weights once does to the output what rounding each of its inputs once does (both put an independent
relative error on every product). The storage-dtype run rounds these inputs at least once, the outputs too,
and besides all other activations, which no conversion does; so a clean fold should lie below half a floor
even where every linear that matters is folded. Two thirds leave room for that, and still a difference as
large as the source's own rounding noise (1 floor) is beyond the limit.

**Wide, dilute damage: 2 floors in RMS for one vocabulary entry, 4 in divergence at one position.** One wrong
row of the head moves one logit everywhere, one wrong row of the embedding every logit where its token is
near; means dilute both.

**Wide, below the floor: median divergence within twice that of rounding the weights once more.** The floor is
the noise of activations, many times that of weights, so damage can hide below it: one matrix kept in 8 bits
does. Where every weight of the source is still there under its name and shape and the tricks only scale (so
that each weight is computed exactly and rounded once), the sharper yardstick applies. The median makes it
deaf to the few positions where an expert is chosen otherwise.

**Jumps.** In a mixture of experts a difference of any size can turn a choice of experts, and the logits jump.
Such positions carry nearly all of every run's mean, so that two runs' means differ by how many there happened
to be; and their number grows with the difference, not with its square. Where the mean of the source's own
noise is more than ten medians, the 90th percentiles are compared instead, with a multiple of 2, the loose
limits hold for medians, and the jumps are held to the limit of a single position.

Above a floor of 0.01 nats per token the first multiple is 1. The argument is one of small errors that add up;
where rounding already changes what the model says, errors are amplified until they saturate, and any two
runs' noise comes out alike. The evidence is weaker there, and says so.

**Storage and decode: divergence within 4 floors, RMS within 2.** The converted model in its own dtype should
be no further from the exact source than the source itself is, but two runs' rounding noise differs by chance.
The sharp limits are the other ones; these catch what only shows in the narrow type, float16 overflow above
all, or only in the cache.

**Generation:** greedy texts may part at a tie. They may not part where the source's choice led by more than
twice the floor's largest difference, which moves of two logits by no more than rounding moves any cannot turn
round.

**Tasks:** a score that differs with a probability of less than 1 in 1,000 by chance, over all tasks together,
is a difference whatever the logits say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from evals.generation import Generation
from evals.logits import LogitDifference
from evals.perplexity import Perplexity
from tricks import BadInput

WIDE_DIVERGENCE = 2 / 3
WIDE_DIVERGENCE_NOISY = 1.0
NOISY = 0.01  # nats per token of the floor, from which small-error arguments stop holding
JUMPS = 10.0  # the mean divergence over the median, from which it tells of jumps
JUMPING_DIVERGENCE = 2.0
LOOSE_DIVERGENCE = 4.0
LARGEST = 2.0
ROUNDED_DIVERGENCE = 2.0
BUDGET = {
    "kl": "nats per token from source to converted",
    "top1": "least share of positions with the same best token",
    "perplexity": "relative increase",
}


class Verdict(StrEnum):
    """What the evidence says of a conversion."""

    EQUIVALENT = "equivalent"
    WITHIN_BUDGET = "within budget"
    DIFFERENT = "different"

    @property
    def publishable(self) -> bool:
        """Whether a model with this verdict may be published."""
        return self is not Verdict.DIFFERENT


@dataclass(frozen=True)
class Check:
    """One figure held against its limit; `least` turns the limit into a lower bound. NaN never passes."""

    name: str
    value: float
    limit: float
    least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure keeps the limit (reaching it is keeping it)."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def reason(self) -> str:
        """The failure in words."""
        if math.isnan(self.value) or math.isnan(self.limit):
            return f"{self.name} could not be measured: there are NaN or infinite logits"
        side = "below" if self.least else "above"
        return f"{self.name} is {self.value:.3g}, {side} the limit of {self.limit:.3g}"


@dataclass(frozen=True)
class Floor:
    """The source's own rounding noise: of several ways to run it in its storage dtype, the worst."""

    divergence: float
    median_divergence: float
    high_divergence: float
    largest_divergence: float
    rms: float
    high_rms: float
    largest: float
    largest_entry: float

    @staticmethod
    def of(runs: Sequence[LogitDifference]) -> Floor:
        """The largest of each figure; NaN where one is."""

        def worst(name: str) -> float:
            figures = [getattr(run, name) for run in runs]
            return math.nan if any(map(math.isnan, figures)) else max(figures)

        return Floor(*map(worst, Floor.__dataclass_fields__))

    @property
    def jumps(self) -> bool:
        """Whether some positions carry nearly all of the noise, as where experts are chosen otherwise."""
        return self.divergence > JUMPS * self.median_divergence

    @property
    def noisy(self) -> bool:
        """Whether rounding to its storage dtype already changes what the source says."""
        return self.divergence > NOISY


def wide_checks(floor: Floor, wide: LogitDifference) -> list[Check]:
    """The limits of a lossless conversion in the wider type."""
    where = wide.other.rpartition(" ")[2]
    multiple = WIDE_DIVERGENCE_NOISY if floor.noisy else WIDE_DIVERGENCE
    if floor.jumps:
        means = [
            Check(
                f"90th percentile of KL divergence in {where}",
                wide.high_divergence,
                JUMPING_DIVERGENCE * floor.high_divergence,
            ),
            Check(
                f"90th percentile of RMS logit difference in {where}",
                wide.high_rms,
                math.sqrt(JUMPING_DIVERGENCE) * floor.high_rms,
            ),
        ]
    else:
        means = [
            Check(f"KL divergence in {where}", wide.divergence, multiple * floor.divergence),
            Check(f"RMS logit difference in {where}", wide.rms, math.sqrt(multiple) * floor.rms),
        ]
    return [
        *means,
        Check(
            f"largest RMS difference of one vocabulary entry in {where}",
            wide.largest_entry,
            LARGEST * floor.largest_entry,
        ),
        Check(
            f"largest KL divergence at one position in {where}",
            wide.largest_divergence,
            LARGEST**2 * floor.largest_divergence,
        ),
    ]


def loose_checks(floor: Floor, run: LogitDifference, name: str) -> list[Check]:
    """The wider limits of a run whose own rounding is part of what is seen."""
    if floor.jumps:
        limit = LOOSE_DIVERGENCE * floor.median_divergence
        return [Check(f"median KL divergence {name}", run.median_divergence, limit)]
    return [
        Check(f"KL divergence {name}", run.divergence, LOOSE_DIVERGENCE * floor.divergence),
        Check(f"RMS logit difference {name}", run.rms, math.sqrt(LOOSE_DIVERGENCE) * floor.rms),
    ]


def rounding_check(rounded: LogitDifference, wide: LogitDifference) -> Check:
    """Whether the weights moved by no more than storing them once more explains, on the same positions."""
    return Check(
        "median KL divergence against weights rounded once more",
        wide.median_divergence,
        ROUNDED_DIVERGENCE * rounded.median_divergence,
    )


def generation_checks(generation: Generation, floor: Floor) -> list[Check]:
    """The limit on where greedy texts may part; nothing to check where they are the same."""
    if generation.lead is None:
        return []
    name = "lead of the source's own choice where greedy generation parted"
    return [Check(name, generation.lead, 2 * floor.largest)]


def budget_checks(
    budget: Mapping[str, float], measured: LogitDifference, perplexity: Perplexity | None
) -> list[Check]:
    """An approximate conversion's stated budget, held against the converted model in its storage dtype."""
    checks = []
    for name, limit in budget.items():
        if name == "kl":
            checks.append(Check("KL divergence against the budget", measured.divergence, limit))
        elif name == "top1":
            checks.append(Check("same best token against the budget", measured.top1, limit, least=True))
        else:
            increase = math.nan if perplexity is None else math.expm1(perplexity.difference)
            checks.append(Check("relative increase of perplexity against the budget", increase, limit))
    return checks


def budget_of(tricks: Sequence[str]) -> dict[str, float]:
    """The budget that tricks state in their options, as `approximate:kl=0.01`; the strictest of several."""
    budget: dict[str, float] = {}
    for trick in tricks:
        for option in trick.partition(":")[2].split(","):
            name, _, value = option.partition("=")
            try:
                limit = float(value)
            except ValueError:
                continue
            if name in BUDGET:
                strictest = max if name == "top1" else min
                budget[name] = strictest(limit, budget.get(name, limit))
    return budget


def check_budget(lossless: bool, budget: Mapping[str, float] | None) -> dict[str, float]:
    """The budget as given, looked over.

    Raises:
        BadInput: an unknown or non-finite entry, or a budget for a lossless conversion.
    """
    given = dict(budget or {})
    if lossless and given:
        raise BadInput("a lossless conversion has no budget; leave the budget out")
    for name, limit in given.items():
        if name not in BUDGET:
            raise BadInput(f"unknown budget {name!r}; known: {', '.join(BUDGET)}")
        if not math.isfinite(limit):
            raise BadInput(f"the budget for {name} is {limit}; give a finite number")
    return given
