"""A plan's edits applied to a checkpoint's tensors as they stream by."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tricks.arithmetic import TORCH, contract, factor, working_dtype
from tricks.checkpoint import WIDTHS, Checkpoint, TensorInfo
from tricks.edits import Edit, Fill, Scale, Shift
from tricks.errors import BadInput
from tricks.hashed_file import BUFFER, HashedFile

_BLOCK = 1 << 17
"""Elements that are scaled at a time: they and their wide copy stay in the processor's cache."""


@dataclass(frozen=True)
class _Grid:
    """A tensor as rows and columns, so that a factor along one axis is a factor of each row or each column.

    `period`: row i takes factor i modulo period; 0 where the factor runs along the columns.
    """

    columns: int
    period: int

    @staticmethod
    def of(shape: tuple[int, ...], axis: int) -> _Grid:
        inner = math.prod(shape[axis + 1 :])
        return _Grid(shape[axis], 0) if inner == 1 else _Grid(inner, shape[axis])


class Editor:
    """The edits of a checkpoint, grouped by tensor; the vectors they need are read and checked at once.

    Raises:
        BadInput: an edit names a tensor that is not there, or a gain holds NaN or Inf.
    """

    def __init__(self, source: Path, checkpoint: Checkpoint, edits: tuple[Edit, ...]) -> None:
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self._source = source
        self._starts: dict[str, int] = {}
        for file in checkpoint.files:
            with (source / file).open("rb") as opened:
                self._starts[file] = 8 + int.from_bytes(opened.read(8), "little")
        self._edits: dict[str, list[Edit]] = defaultdict(list)
        self._factors: dict[tuple[str, float], torch.Tensor] = {}
        self._vectors: dict[str, torch.Tensor] = {}
        for edit in edits:
            self._take(edit)

    def _take(self, edit: Edit) -> None:
        names = [edit.tensor]
        names += [edit.gain] if isinstance(edit, Scale) else []
        names += [edit.weight, edit.by] if isinstance(edit, Shift) else []
        for name in names:
            if name not in self.checkpoint.tensors:
                raise BadInput(
                    f"{self.checkpoint.name} has no tensor {name}; the plan was made for another checkpoint"
                )
        self._edits[edit.tensor].append(edit)
        if isinstance(edit, Scale):
            self._factors[edit.gain, edit.offset] = factor(self._vector(edit.gain), edit.offset)
        elif isinstance(edit, Shift):
            self._vectors[edit.by] = self._vector(edit.by)

    def _vector(self, name: str) -> torch.Tensor:
        values = self._whole(self.checkpoint.tensors[name])
        if not torch.isfinite(values).all():
            raise BadInput(
                f"{self.checkpoint.name}: the gain {name} holds NaN or Inf, so the model is broken; "
                "repair it first"
            )
        return values

    def header(self, file: str) -> bytes:
        """Everything before the data of a weight file, as it stands there."""
        with (self._source / file).open("rb") as opened:
            return opened.read(self._starts[file])

    def pour(self, tensor: TensorInfo, out: HashedFile) -> Iterator[int]:
        """Write the edited tensor to `out`; yields the bytes of each step."""
        edits = self._edits.get(tensor.name, [])
        size = tensor.end - tensor.begin
        self.bytes_read += size
        scale = next((edit for edit in edits if isinstance(edit, Scale)), None)
        if edits and (scale is None or len(edits) > 1):
            yield from self._pour_small(tensor, edits, out)
            return
        grid = _Grid.of(tensor.shape, scale.axis) if scale else _Grid(1, 0)
        row = grid.columns * WIDTHS[tensor.dtype] if scale else 1
        step = max(BUFFER // row, 1) * row
        if step > BUFFER:
            raise BadInput(f"{tensor.name} has rows of over {BUFFER} bytes, which no known model has")
        with (self._source / tensor.file).open("rb", buffering=0) as opened:
            for begin in range(0, size, step):
                length = min(step, size - begin)
                with out.buffer(length) as view:
                    self._read(opened.fileno(), tensor, begin, view)
                    if scale:
                        values = torch.frombuffer(view, dtype=TORCH[tensor.dtype]).view(-1, grid.columns)
                        self._scale(tensor, scale, grid, values, begin // row)
                yield length

    def _read(self, handle: int, tensor: TensorInfo, begin: int, view: memoryview) -> None:
        place = self._starts[tensor.file] + tensor.begin + begin
        while len(view):
            count = os.preadv(handle, [view], place)
            if not count:
                raise BadInput(f"{self.checkpoint.name}: {tensor.file} became shorter while it was read")
            place, view = place + count, view[count:]

    def _scale(self, tensor: TensorInfo, edit: Scale, grid: _Grid, values: torch.Tensor, first: int) -> None:
        """Scale `values` [rows, columns], whose first row is row `first` of the tensor, in place."""
        along = self._factors[edit.gain, edit.offset]
        working = working_dtype(values.dtype, along)
        along = along.to(working)
        step = max(_BLOCK // grid.columns, 1)
        wide = torch.empty(min(step, len(values)), grid.columns, dtype=working)
        for begin in range(0, len(values), step):
            rows = values[begin : begin + step]
            part = wide[: len(rows)].copy_(rows)
            if grid.period:
                places = torch.arange(first + begin, first + begin + len(rows)) % grid.period
                part.mul_(along[places].unsqueeze(1))
            else:
                part.mul_(along)
            overflows = values.dtype is torch.float16 and bool((part.abs() > _LARGEST_HALF).any())
            if overflows and torch.isfinite(rows).all():
                raise BadInput(
                    f"{tensor.name} would overflow float16 once its norm's gain is folded in; "
                    "convert a bfloat16 or float32 copy of the model"
                )
            rows.copy_(part)

    def _pour_small(self, tensor: TensorInfo, edits: list[Edit], out: HashedFile) -> Iterator[int]:
        """Vectors and biases: whole in memory, in float64."""
        stored = self._whole(tensor)
        values = stored.double()
        for edit in edits:
            if isinstance(edit, Fill):
                values = torch.full_like(values, edit.value)
            elif isinstance(edit, Shift):
                values += self._product(edit)
            else:
                shape = [1] * values.ndim
                shape[edit.axis] = -1
                values *= self._factors[edit.gain, edit.offset].double().view(shape)
        data = values.to(stored.dtype).reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        out.put(data)
        yield len(data)

    def _product(self, edit: Shift) -> torch.Tensor:
        """W·β in float64, reading the weight a slice of its first axis at a time."""
        weight = self.checkpoint.tensors[edit.weight]
        by = self._vectors[edit.by]
        if edit.axis == 0:
            slices = self._slices(weight)
            return torch.stack([contract(part, by[i : i + len(part)], 0) for i, part in slices]).sum(0)
        return torch.cat([contract(part, by, edit.axis) for _, part in self._slices(weight)])

    def _slices(self, tensor: TensorInfo) -> Iterator[tuple[int, torch.Tensor]]:
        stride = max((tensor.end - tensor.begin) // max(tensor.shape[0], 1), 1)
        step = max(BUFFER // stride, 1)
        for first in range(0, tensor.shape[0], step):
            last = min(first + step, tensor.shape[0])
            part = self._part(tensor, first * stride, last * stride)
            yield first, part.view(last - first, *tensor.shape[1:])

    def _whole(self, tensor: TensorInfo) -> torch.Tensor:
        return self._part(tensor, 0, tensor.end - tensor.begin).view(tensor.shape)

    def _part(self, tensor: TensorInfo, begin: int, end: int) -> torch.Tensor:
        if begin == end:
            return torch.empty(0, dtype=TORCH[tensor.dtype])
        memory = bytearray(end - begin)
        with (self._source / tensor.file).open("rb", buffering=0) as opened:
            self._read(opened.fileno(), tensor, begin, memoryview(memory))
        return torch.frombuffer(memory, dtype=TORCH[tensor.dtype])


_LARGEST_HALF = 65519.99
"""Whatever is larger rounds to infinity in float16."""
