"""Reading a checkpoint's tensors: whole or in part, never through a memory map."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

from tricks.arithmetic import TORCH
from tricks.checkpoint import Checkpoint, TensorInfo
from tricks.errors import BadInput


class Reader:
    """The bytes of a checkpoint in the folder `source`; `bytes_read` counts them."""

    def __init__(self, source: Path, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self._counting = threading.Lock()
        self._source = source
        self._starts: dict[str, int] = {}
        for file in checkpoint.files:
            with (source / file).open("rb") as opened:
                self._starts[file] = 8 + int.from_bytes(opened.read(8), "little")

    def header(self, file: str) -> bytes:
        """Everything before the data of a weight file, as it stands there."""
        with (self._source / file).open("rb") as opened:
            return opened.read(self._starts[file])

    def fill(self, tensor: TensorInfo, begin: int, view: memoryview) -> None:
        """Fill `view` with the tensor's bytes from `begin` on.

        Raises:
            BadInput: the file became shorter since its header was read.
        """
        place = self._starts[tensor.file] + tensor.begin + begin
        with self._counting:
            self.bytes_read += len(view)
        with (self._source / tensor.file).open("rb", buffering=0) as opened:
            while len(view):
                count = os.preadv(opened.fileno(), [view], place)
                if not count:
                    raise BadInput(f"{self.checkpoint.name}: {tensor.file} became shorter while it was read")
                place, view = place + count, view[count:]


class Stored:
    """A tensor as the source stores it (a `Value`)."""

    def __init__(self, reader: Reader, info: TensorInfo) -> None:
        self.info = info
        self.reader = reader
        self.name = info.name
        self.dtype = info.dtype
        self.shape = info.shape

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows in float64; see `operations.Value`."""
        count = max(self.shape[0], 1) if self.shape else 1
        stride = (self.info.end - self.info.begin) // count
        memory = bytearray((last - first) * stride)
        if not memory:
            return torch.empty((last - first, *self.shape[1:]), dtype=torch.float64)
        self.reader.fill(self.info, first * stride, memoryview(memory))
        values = torch.frombuffer(memory, dtype=TORCH[self.dtype])
        return values.view(last - first, *self.shape[1:]).double()
