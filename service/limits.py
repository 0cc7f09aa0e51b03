"""How much one user, and all together, may ask of the service. 0 means: as much as they like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tricks import BadInput


class Reached(StrEnum):
    """Which limit a request would exceed."""

    USER_WAITING = "user_waiting"
    ALL_WAITING = "all_waiting"
    USER_BYTES = "user_bytes"
    USER_JOBS = "user_jobs"


class LimitReached(BadInput):
    """Too much at once, or in a day: the same request may be taken later."""


@dataclass(frozen=True)
class Limits:
    """Numbers of jobs, and bytes of sources."""

    user_waiting: int = 0
    all_waiting: int = 0
    user_running: int = 0
    user_bytes: int = 0
    """Of all sources that one user submits in one day (UTC)."""
    model_bytes: int = 0
    """Of one source."""
    user_jobs: int = 0
    """That one user submits in one day (UTC)."""

    def at_submit(self) -> dict[str, int]:
        """What is checked in the moment in which a job is made, so that many at once cannot slip through."""
        return {
            "user_waiting": self.user_waiting,
            "all_waiting": self.all_waiting,
            "user_bytes": self.user_bytes,
            "user_jobs": self.user_jobs,
        }

    def check_model(self, model: str, size: int) -> None:
        """Refuse a source that is too large here.

        Raises:
            BadInput: it is.
        """
        if 0 < self.model_bytes < size:
            raise BadInput(
                f"{model} has {size / 1e9:.2f} GB and this service takes {self.model_bytes / 1e9:.2f} GB"
                " at most; choose a smaller model, or run Tricksmith on a machine of your own"
            )

    def refusal(self, reached: Reached) -> LimitReached:
        """What to tell whose request would exceed a limit."""
        match reached:
            case Reached.USER_WAITING:
                return LimitReached(
                    f"you have {self.user_waiting} jobs waiting, the most for one user;"
                    " wait for one to finish, or cancel one"
                )
            case Reached.ALL_WAITING:
                return LimitReached(
                    f"{self.all_waiting} jobs are waiting, the most this service takes; try again later"
                )
            case Reached.USER_BYTES:
                return LimitReached(
                    f"this would be more than the {self.user_bytes / 1e9:.2f} GB of models that one user may"
                    " submit in a day; try again tomorrow"
                )
            case Reached.USER_JOBS:
                return LimitReached(
                    f"you have submitted {self.user_jobs} jobs today, the most for one user;"
                    " the day ends at midnight UTC"
                )
