"""Two models side by side: what is measured, against which noise, and the verdict."""

from evals.compare import compare
from evals.evidence import Evidence
from evals.verdict import Check, Verdict

__all__ = ["Check", "Evidence", "Verdict", "compare"]
