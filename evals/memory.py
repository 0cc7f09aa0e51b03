"""How much memory a comparison may hold, and where a model's weights go under that limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from evals.precision import weight_count
from tricks import BadInput

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE)
SHARE_KEPT = 8  # of what may be held: this part for the reference's logits,
SHARE_WORK = 4  # and this part for activations and the temporaries of the comparison
FREE_SHARE = 0.8  # of what is free is used where no limit is stated
LEAST = 2**29  # bytes: imports alone take nearly as much
KEPT_BYTES = 2**30  # the most for the reference's logits, however large the memory


@dataclass(frozen=True)
class MemoryLimit:
    """The most bytes to hold: `cpu` of this whole process, `gpu` of one accelerator; None: what is free."""

    cpu: int | None = None
    gpu: int | None = None

    def spare(self, device: str) -> int:
        """Bytes that can still be taken on `device` ("cpu", "cuda:0", ...)."""
        if device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info(device)
            allocated = torch.cuda.memory_allocated(device)
            return int(free * FREE_SHARE) if self.gpu is None else self.gpu - allocated
        free = int(psutil.virtual_memory().available * FREE_SHARE)
        return free if self.cpu is None else min(free, self.cpu - int(psutil.Process().memory_info().rss))

    def within(self, cpu: int) -> MemoryLimit:
        """This limit under one of `cpu` bytes that whoever runs this process holds it to."""
        most = cpu if self.cpu is None else min(cpu, self.cpu)
        return MemoryLimit(max(most, LEAST), self.gpu)

    def kept(self) -> int:
        """Bytes for the logits that the converted model's are compared with."""
        return min(KEPT_BYTES, max(self.spare("cpu"), 0) // SHARE_KEPT)


def parse_memory(text: str) -> MemoryLimit:
    """`8GiB` (of this process), or `cuda=20GiB,cpu=8GiB`.

    Raises:
        BadInput: not of that form.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.rpartition("=")
        name = {"": "cpu", "cpu": "cpu", "cuda": "gpu", "gpu": "gpu"}.get(name.strip().lower(), "?")
        match = _SIZE.fullmatch(size.strip())
        if name == "?" or match is None or name in found:
            raise BadInput(f"{text!r} is no memory limit; write 8GiB, or cuda=20GiB,cpu=8GiB")
        found[name] = int(float(match[1]) * _UNITS[match[2].lower()])
    return MemoryLimit(**found)


def check_device(name: str) -> str:
    """The device, if torch knows it and it is here.

    Raises:
        BadInput: it is not.
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"no device {name!r} here; leave --device out, or write cpu") from error
    return name


def placement(
    folder: Path, dtype: torch.dtype, device: str, limit: MemoryLimit, offload: str
) -> dict[str, Any]:
    """How `from_pretrained` should lay out the folder's weights; empty where they simply fit on `device`.

    What does not fit on a GPU goes to the CPU's memory, what does not fit there stays in its file and is read
    when its layer runs (accelerate's disk offload, in the folder `offload` where it needs one).

    Raises:
        BadInput: the limit leaves no room for anything.
    """
    if limit.cpu is not None and limit.cpu < LEAST:
        raise BadInput(
            f"a limit of {limit.cpu:,} bytes holds no more than Python and torch themselves; "
            "allow 1GiB or more"
        )
    needed = weight_count(folder) * dtype.itemsize
    cpu = limit.spare("cpu") * (SHARE_WORK - 1) // SHARE_WORK
    gpu = limit.spare(device) * (SHARE_WORK - 1) // SHARE_WORK if device.startswith("cuda") else None
    if needed <= (cpu if gpu is None else gpu):
        return {}
    most: dict[int | str, int] = {"cpu": max(cpu, 0)}
    if gpu is not None:
        most[torch.device(device).index or 0] = gpu
    return {"device_map": "auto", "max_memory": most, "offload_folder": offload}
