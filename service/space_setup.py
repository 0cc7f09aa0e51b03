"""How one Hub Space of ours is set up: what it runs on, where its history lies, what may be asked of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceHardware

from service.hub import is_hub_id
from tricks import BadInput

MARK = "tricksmith-space.json"
"""The file by which a Space is known as ours; it holds its set-up."""
FORMAT = 1
MOUNTED = "/data"
"""Where a bucket is mounted."""
ZERO = "zero-a10g"

_ROOM: dict[str, tuple[int, int]] = {
    "cpu-basic": (16, 50),
    "cpu-upgrade": (32, 50),
    "t4-medium": (30, 100),
    "a10g-small": (15, 110),
    "a10g-large": (46, 200),
    "a100-large": (142, 1000),
}
"""Memory and disk in GB (Hub documentation, "Spaces Overview", hardware resources)."""
_LEAST = (15, 50)
"""Of what is not listed, and of t4-small: no Space has less."""


@dataclass(frozen=True)
class Setup:
    """One Space; `history` is `bucket:NAMESPACE/NAME`, `dataset:NAMESPACE/NAME` or `none`.

    With `remote`, the Space is only a face: jobs go to the Redis that its secret REDIS_URL names.
    """

    hardware: str = "cpu-basic"
    history: str = "none"
    remote: bool = False
    limits: dict[str, str] = field(default_factory=dict)

    @property
    def zero(self) -> bool:
        """Whether it runs on ZeroGPU."""
        return self.hardware == ZERO

    @property
    def gpu(self) -> bool:
        """Whether torch should be the one for GPUs: not on plain CPUs, nor where nothing is run."""
        return not self.remote and not self.hardware.startswith("cpu-")

    @property
    def keeper(self) -> str | None:
        """Where the history is kept, as the Space itself sees it (see history.keeper_of)."""
        kind, _, where = self.history.partition(":")
        return {"bucket": f"folder:{MOUNTED}/tricksmith", "dataset": f"dataset:{where}"}.get(kind)

    def to_text(self) -> str:
        """As it stands in the Space."""
        return json.dumps({"made_by": "tricksmith", "format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_text(text: str) -> Setup:
        """Read it back.

        Raises:
            BadInput: it is not ours, or of a later release.
        """
        try:
            told: dict[str, Any] = json.loads(text)
            if told.pop("made_by") != "tricksmith" or told.pop("format") != FORMAT:
                raise ValueError
            return Setup(**told)
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{MARK} is not as this Tricksmith writes it; update Tricksmith") from None

    @staticmethod
    def read(folder: Path) -> Setup:
        """Of the folder that a Space runs in."""
        return Setup.from_text((folder / MARK).read_text(encoding="utf-8"))


def make_setup(space: str, hardware: str, history: str, *, remote: bool) -> Setup:
    """Check what is asked for, and fit the limits to the hardware.

    Args:
        history: `bucket`, `dataset` or `none`; the first two may name one, else it is `space`-history.

    Raises:
        BadInput: an unknown hardware or history.
    """
    known = [str(flavor.value) for flavor in SpaceHardware]
    if hardware not in known:
        raise BadInput(f"{hardware!r} is no hardware of the Hub; known: {', '.join(known)}")
    kind, _, where = history.partition(":")
    where = where or f"{space}-history"
    if kind not in ("bucket", "dataset", "none") or not is_hub_id(where) or "/" not in where:
        raise BadInput(
            f"{history!r} is no storage; write bucket, dataset or none (or dataset:NAMESPACE/NAME)"
        )
    lasting = "none" if remote or kind == "none" else f"{kind}:{where}"
    return Setup(hardware, lasting, remote, {} if remote else limits_of(hardware))


def limits_of(hardware: str) -> dict[str, str]:
    """What fits on this hardware, as variables of service/settings.py.

    A model is compared in float32, twice what its bfloat16 files have, beside its conversion: a quarter of a
    job's memory, and so an eighth of all, is what its files may have.
    """
    memory, disk = _ROOM.get(hardware, _LEAST)
    gpu = {} if hardware == ZERO or hardware.startswith("cpu-") else {"TRICKSMITH_GPU_FROM": "0"}
    return gpu | {
        "TRICKSMITH_MODEL_BYTES": f"{memory / 8:.1f}GB",
        "TRICKSMITH_MEMORY": f"{memory * 0.7:.0f}GB",
        "TRICKSMITH_SOURCE_CACHE": f"{disk / 5:.0f}GB",
        "TRICKSMITH_TIME_LIMIT_HOURS": "4",
        "TRICKSMITH_USER_JOBS_PER_DAY": "5",
        "TRICKSMITH_USER_WAITING": "2",
        "TRICKSMITH_USER_RUNNING": "1",
        "TRICKSMITH_ALL_WAITING": "20",
    }
