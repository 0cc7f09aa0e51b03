"""A plan's edits applied to a checkpoint's tensors as they stream by."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tricks.arithmetic import TORCH, working_dtype
from tricks.checkpoint import WIDTHS, Checkpoint
from tricks.edits import Center, Drop, Edit, Fill, Make, Scale, Shift
from tricks.errors import BadInput
from tricks.hashed_file import BUFFER, HashedFile
from tricks.operations import Value, whole
from tricks.stored import Reader, Stored
from tricks.values import Call, Centred, Filled, Made, Scaled, Shifted, blocks

_BLOCK = 1 << 17
"""Elements that are scaled at a time: they and their wide copy stay in the processor's cache."""

_LARGEST_HALF = 65519.99
"""Whatever is larger rounds to infinity in float16."""


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
    """The result of a plan's edits: which files, which tensors in them, and their bytes.

    Raises:
        BadInput: an edit names a tensor that is not there, or a gain holds NaN or Inf.
    """

    def __init__(self, source: Path, checkpoint: Checkpoint, edits: tuple[Edit, ...]) -> None:
        self.checkpoint = checkpoint
        self.reader = Reader(source, checkpoint)
        self._values: dict[str, Value] = {}
        self._file: dict[str, str] = {}
        self._call: Call | None = None
        self._calls: list[Call] = []
        for info in sorted(checkpoint.tensors.values(), key=lambda t: (t.file, t.begin)):
            self._values[info.name] = Stored(self.reader, info)
            self._file[info.name] = info.file
        for edit in edits:
            self._apply(edit)

    def _apply(self, edit: Edit) -> None:
        match edit:
            case Make():
                inputs = {role: self._value(name) for role, name in edit.inputs.items()}
                call = Call(edit.operation, inputs, edit.options)
                self._calls.append(call)
                file = self._file[next(iter(edit.inputs.values()))]
                for role, new in edit.outputs.items():
                    self._values[new.name] = Made(call, role, new)
                    self._file.setdefault(new.name, file)
            case Drop():
                self._value(edit.tensor)
                del self._values[edit.tensor], self._file[edit.tensor]
            case Scale():
                gain = self._vector(edit.gain)
                self._values[edit.tensor] = Scaled(self._value(edit.tensor), edit.axis, gain, edit.offset)
            case Shift():
                base, weight = self._value(edit.tensor), self._value(edit.weight)
                self._values[edit.tensor] = Shifted(base, weight, edit.axis, self._vector(edit.by))
            case Fill():
                self._values[edit.tensor] = Filled(self._value(edit.tensor), edit.value)
            case Center():
                self._values[edit.tensor] = Centred(self._value(edit.tensor), edit.axis)

    def _value(self, name: str) -> Value:
        if name not in self._values:
            raise BadInput(
                f"{self.checkpoint.name} has no tensor {name}; the plan was made for another checkpoint"
            )
        return self._values[name]

    def _vector(self, name: str) -> torch.Tensor:
        values = whole(self._value(name))
        if not torch.isfinite(values).all():
            raise BadInput(
                f"{self.checkpoint.name}: the gain {name} holds NaN or Inf, so the model is broken; "
                "repair it first"
            )
        return values

    # --- layout ----------------------------------------------------------------------------------

    @property
    def files(self) -> list[str]:
        """The weight files of the result."""
        used = set(self._file.values())
        return [file for file in self.checkpoint.files if file in used]

    def tensors(self, file: str) -> list[Value]:
        """The tensors of one file, in their order there."""
        inside = [value for name, value in self._values.items() if self._file[name] == file]
        if self._unchanged(file):
            return inside
        return sorted(
            inside, key=lambda value: -WIDTHS[value.dtype]
        )  # wide ones first, so that all are aligned

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(map(_bytes, self._values.values()))

    @property
    def conditions(self) -> dict[str, float]:
        """Operation -> the worst condition number of what it inverted, as far as it has run."""
        worst: dict[str, float] = {}
        for call in self._calls:
            if call.condition is not None:
                worst[call.operation] = max(worst.get(call.operation, 0.0), call.condition)
        return worst

    def _unchanged(self, file: str) -> bool:
        before = {n: (t.dtype, t.shape) for n, t in self.checkpoint.tensors.items() if t.file == file}
        return before == {n: (v.dtype, v.shape) for n, v in self._values.items() if self._file[n] == file}

    def header(self, file: str) -> bytes:
        """Everything before the data of a weight file; the source's own bytes where nothing moved."""
        original = self.reader.header(file)
        if self._unchanged(file):
            return original
        metadata = json.loads(original[8:]).get("__metadata__")
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        place = 0
        for value in self.tensors(file):
            end = place + _bytes(value)
            header[value.name] = {
                "dtype": value.dtype,
                "shape": list(value.shape),
                "data_offsets": [place, end],
            }
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def index(self, original: dict[str, Any]) -> dict[str, Any] | None:
        """The index that fits the result, or None where the source's own still does."""
        if all(self._unchanged(file) for file in self.checkpoint.files):
            return None
        metadata = dict(original.get("metadata") or {})
        metadata["total_size"] = self.weight_bytes
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(math.prod(v.shape) for v in self._values.values())
        return {"metadata": metadata, "weight_map": dict(sorted(self._file.items()))}

    # --- bytes -----------------------------------------------------------------------------------

    def pour(self, value: Value, out: HashedFile) -> Iterator[int]:
        """Write one tensor of the result to `out`; yields the bytes of each step."""
        if isinstance(value, Stored):
            yield from self._pour_in_place(value, None, out)
        elif isinstance(value, Scaled) and isinstance(value.base, Stored):
            yield from self._pour_in_place(value.base, value, out)
        else:
            yield from self._pour_rows(value, out)

    def _pour_in_place(self, stored: Stored, scaled: Scaled | None, out: HashedFile) -> Iterator[int]:
        size = _bytes(stored)
        grid = _Grid.of(stored.shape, scaled.axis) if scaled else _Grid(1, 0)
        row = grid.columns * WIDTHS[stored.dtype] if scaled else 1
        step = max(BUFFER // row, 1) * row
        if step > BUFFER:
            raise BadInput(f"{stored.name} has rows of over {BUFFER} bytes, which no known model has")

        def make(begin: int, view: memoryview) -> None:
            self.reader.fill(stored.info, begin, view)
            if scaled:
                values = torch.frombuffer(view, dtype=TORCH[stored.dtype]).view(-1, grid.columns)
                _scale(scaled, grid, values, begin // row)

        for begin in range(0, size, step):
            length = min(step, size - begin)
            out.make(length, partial(make, begin))
            yield length

    def _pour_rows(self, value: Value, out: HashedFile) -> Iterator[int]:
        """What is more than one factor: in float64, a few rows at a time."""
        if isinstance(value, Made) and self._call is not value.call:
            if self._call is not None:
                self._call.forget()
            self._call = value.call
        for _, part in blocks(value):
            stored = part.to(TORCH[value.dtype])
            if not torch.isfinite(stored).all() and torch.isfinite(part).all():
                raise _overflow(value)
            data = stored.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            out.put(data)
            yield len(data)


def _bytes(value: Value) -> int:
    return WIDTHS[value.dtype] * math.prod(value.shape)


def _overflow(value: Value) -> BadInput:
    return BadInput(
        f"{value.name} would overflow {str(TORCH[value.dtype]).removeprefix('torch.')} once it is converted; "
        "convert a bfloat16 or float32 copy of the model"
    )


def _scale(scaled: Scaled, grid: _Grid, values: torch.Tensor, first: int) -> None:
    """Scale `values` [rows, columns], whose first row is row `first` of the tensor, in place."""
    working = working_dtype(values.dtype, scaled.factor)
    along = scaled.factor.to(working)
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
            raise _overflow(scaled)
        rows.copy_(part)
