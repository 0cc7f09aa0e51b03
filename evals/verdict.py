"""From measured differences to a verdict: which limits there are, where they come from, and who keeps them.

One reference stands for the truth: the source with its stored weights in the next wider type (bfloat16 and
float16 in float32; float32 in float64). Three runs are compared with it on the same tokens:

- *floor*: the source in its storage dtype. What rounding alone does to this very model on these very tokens.
- *wide*: the converted model in the wider type. All that is left of a lossless conversion there is that
  each changed weight was rounded once when it was stored.
- *storage*: the converted model in the storage dtype, as it will be used.

A divergence grows with the square of a small difference, so a multiple m of the floor's divergence goes with
sqrt(m) of its RMS difference.

**Wide: divergence within 2/3 of the floor, RMS within sqrt(2/3), largest logit difference within 2.** Take
one folded linear: rounding each of its weights once does to the output what rounding each of its inputs once
does (both put an independent relative error on every product). The storage-dtype run rounds these inputs at
least once, the outputs too, and besides all other activations, which no conversion does; so a clean fold
should lie below half a floor even where every linear that matters is folded. Measured: 0.02 to 0.07 on
trained models; on 240 random ones of 1 to 8 layers, with gains from 0.05 to 10 and of either sign, at most
0.47. Two thirds leave room for that, and still a difference as large as the source's own rounding noise (1
floor) is beyond the limit: a gain folded twice in one layer was measured at 0.7 to 1,100 floors, a bias lost
at 0.55 (and 1.0 in RMS) to 1,300, a swapped head at 120 to 820. What stays under it (1 % on one matrix, one
layer rounded to 8 bits) is less than what choosing this dtype does to the source, and this evidence does not
claim to see it.

The largest difference has a heavy tail (clean folds were seen at 1.1 floors) and a wider limit, 2 floors for
one logit and so 4 for the divergence at one position: it is there for damage that means dilute, one row of
the vocabulary or one token, which exceeds it many times.

Above a floor of 0.01 nats per token the first multiple is 1. The argument is one of small errors that add up;
where rounding already changes what the model says, errors are amplified until they saturate, and any two
runs' noise comes out alike (0.64 floors seen, on a random model with a floor of 0.7 nats). The evidence is
weaker there, and says so.

**Storage: divergence within 4 floors of the reference, RMS within 2.** The converted model in its own dtype
should be no further from the exact source than the source itself is; a clean one is measured at 0.96 to 1.0
floors on trained models. Two runs' rounding noise differs by chance, though, and on random models that
amplify it 1.4 floors were seen. The sharp limit is the other one; this one catches what only shows in the
narrow type, float16 overflow above all.

**Generation:** greedy texts may part at a tie. They may not part where the source's choice led by more than
twice the floor's largest difference, which moves of two logits by no more than rounding moves any cannot turn
round; this holds the cached decode path to the same limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from evals.generation import Generation
from evals.logits import LogitDifference
from evals.perplexity import Perplexity
from tricks import BadInput

WIDE_DIVERGENCE = 2 / 3
WIDE_DIVERGENCE_NOISY = 1.0
NOISY = 0.01  # nats per token of the floor, from which small-error arguments stop holding
STORAGE_DIVERGENCE = 4.0
LARGEST = 2.0
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


def noise_checks(
    floor: LogitDifference, wide: LogitDifference, storage: LogitDifference, wide_name: str, storage_name: str
) -> list[Check]:
    """The limits of a lossless conversion; see the module's text for the reasons."""
    root = math.sqrt
    multiple = WIDE_DIVERGENCE_NOISY if is_noisy(floor) else WIDE_DIVERGENCE
    return [
        Check(f"KL divergence in {wide_name}", wide.divergence, multiple * floor.divergence),
        Check(f"RMS logit difference in {wide_name}", wide.rms, root(multiple) * floor.rms),
        Check(f"largest logit difference in {wide_name}", wide.largest, LARGEST * floor.largest),
        Check(
            f"largest KL divergence at one position in {wide_name}",
            wide.largest_divergence,
            LARGEST**2 * floor.largest_divergence,
        ),
        Check(f"KL divergence in {storage_name}", storage.divergence, STORAGE_DIVERGENCE * floor.divergence),
        Check(f"RMS logit difference in {storage_name}", storage.rms, root(STORAGE_DIVERGENCE) * floor.rms),
    ]


def is_noisy(floor: LogitDifference) -> bool:
    """Whether rounding to its storage dtype already changes what the source says."""
    return floor.divergence > NOISY


def generation_checks(generation: Generation, floor: LogitDifference) -> list[Check]:
    """The limit on where greedy texts may part; nothing to check where they are the same."""
    if generation.lead is None:
        return []
    name = "lead of the source's own choice where greedy generation parted"
    return [Check(name, generation.lead, 2 * floor.largest)]


def budget_checks(
    budget: Mapping[str, float], storage: LogitDifference, perplexity: Perplexity | None
) -> list[Check]:
    """An approximate conversion's stated budget, held against the converted model in its storage dtype."""
    checks = []
    for name, limit in budget.items():
        if name == "kl":
            checks.append(Check("KL divergence against the budget", storage.divergence, limit))
        elif name == "top1":
            checks.append(Check("same best token against the budget", storage.top1, limit, least=True))
        else:
            increase = math.nan if perplexity is None else perplexity.converted / perplexity.source - 1
            checks.append(Check("relative increase of perplexity against the budget", increase, limit))
    return checks


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
