"""A plan carried out: shard by shard in the source's own layout, never the whole model in memory.

Each output file starts with the source file's header, byte for byte: no tensor changes its shape, dtype or
place. What no edit touches is copied byte for byte; what an edit touches passes through memory in slices.
Everything is written to a sibling of the destination and renamed when all of it is on disk.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from tricks.arithmetic import TORCH, contract, factor, scale_rows, working_dtype
from tricks.checkpoint import Checkpoint, TensorInfo, read_checkpoint
from tricks.companions import companions, files_of
from tricks.edits import Edit, Fill, Scale, Shift
from tricks.errors import BadInput
from tricks.plan import Plan
from tricks.progress import Report, silent

_SLICE = 8 << 20
"""Bytes that pass through memory at a time."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote: file name -> SHA-256 in hex, and the bytes it moved."""

    files: dict[str, str]
    bytes_read: int
    bytes_written: int


def convert(plan: Plan, source: Path, out: Path, report: Report = silent) -> Conversion:
    """Carry out `plan` on the checkpoint in `source`, into the new folder `out`.

    Peak memory is a few slices of 8 MiB whatever the model's size, except that a bias which takes a norm's
    bias reads its weight in slices too.

    Raises:
        BadInput: `out` exists, the plan is for another checkpoint, a gain is not finite, a folded weight
            leaves the range of its dtype, or the disk is full. Nothing is left behind.
    """
    if out.exists():
        raise BadInput(f"{out} exists already; choose a folder that does not")
    checkpoint = read_checkpoint(source)
    work = _Work(source, checkpoint, plan.edits)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir()
        files = _write(work, source, partial, report)
        _sync(partial)
        partial.rename(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            need = checkpoint.weight_bytes / 1e9
            raise BadInput(f"the disk of {out.parent} is full; free {need:.2f} GB and run again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = sum((out / name).stat().st_size for name in files)
    return Conversion(files, work.bytes_read, written)


class _Work:
    """The edits of a checkpoint, grouped by tensor, with the gains they need read and checked."""

    def __init__(self, source: Path, checkpoint: Checkpoint, edits: tuple[Edit, ...]) -> None:
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self.maps: dict[str, tuple[mmap.mmap, int]] = {}
        self.edits: dict[str, list[Edit]] = defaultdict(list)
        for file in checkpoint.files:
            with (source / file).open("rb") as opened:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.maps[file] = (mapped, 8 + int.from_bytes(mapped[:8], "little"))
        self.factors: dict[tuple[str, float], torch.Tensor] = {}
        self.vectors: dict[str, torch.Tensor] = {}
        for edit in edits:
            for name in self._named(edit):
                if name not in checkpoint.tensors:
                    raise BadInput(
                        f"{checkpoint.name} has no tensor {name}; the plan was made for another checkpoint"
                    )
            self.edits[edit.tensor].append(edit)
            if isinstance(edit, Scale):
                self.factors[edit.gain, edit.offset] = factor(self._vector(edit.gain), edit.offset)
            elif isinstance(edit, Shift):
                self.vectors[edit.by] = self._vector(edit.by)

    @staticmethod
    def _named(edit: Edit) -> tuple[str, ...]:
        if isinstance(edit, Scale):
            return edit.tensor, edit.gain
        return (edit.tensor, edit.weight, edit.by) if isinstance(edit, Shift) else (edit.tensor,)

    def _vector(self, name: str) -> torch.Tensor:
        values = self.view(self.checkpoint.tensors[name]).clone()
        if not torch.isfinite(values).all():
            raise BadInput(
                f"{self.checkpoint.name}: the gain {name} holds NaN or Inf, so the model is broken; "
                "repair it first"
            )
        return values

    def raw(self, tensor: TensorInfo, begin: int, end: int) -> memoryview:
        """Bytes `begin:end` of a tensor, a view of the source file."""
        mapped, start = self.maps[tensor.file]
        place = start + tensor.begin
        return memoryview(mapped)[place + begin : place + end]

    def view(self, tensor: TensorInfo) -> torch.Tensor:
        """The whole tensor, mapped, not to be written to."""
        return self.rows(tensor, 0, tensor.shape[0] if tensor.shape else 1).view(tensor.shape)

    def rows(self, tensor: TensorInfo, first: int, last: int) -> torch.Tensor:
        """Rows `first:last` along the tensor's first axis."""
        stride = (tensor.end - tensor.begin) // max(tensor.shape[0] if tensor.shape else 1, 1)
        data = self.raw(tensor, first * stride, last * stride)
        shape = (last - first, *tensor.shape[1:])
        dtype = TORCH[tensor.dtype]
        return (
            torch.frombuffer(data, dtype=dtype).view(shape) if len(data) else torch.empty(shape, dtype=dtype)
        )

    def pieces(self, tensor: TensorInfo) -> Iterator[memoryview]:
        """The tensor's bytes after its edits, slice by slice."""
        edits = self.edits.get(tensor.name)
        size = tensor.end - tensor.begin
        self.bytes_read += size
        if not edits:
            for begin in range(0, size, _SLICE):
                yield self.raw(tensor, begin, min(begin + _SLICE, size))
            return
        stride = max(size // max(tensor.shape[0], 1), 1)
        step = max(_SLICE // stride, 1)
        for first in range(0, tensor.shape[0], step):
            rows = self.rows(tensor, first, min(first + step, tensor.shape[0]))
            yield _bytes(self._edited(tensor, rows, edits, first))

    def _edited(self, tensor: TensorInfo, rows: torch.Tensor, edits: list[Edit], first: int) -> torch.Tensor:
        scales = [edit for edit in edits if isinstance(edit, Scale)]
        factors = [self.factors[edit.gain, edit.offset] for edit in scales]
        result = rows
        for edit in edits:
            if isinstance(edit, Fill):
                result = torch.full_like(rows, edit.value)
            elif isinstance(edit, Shift):
                weight = self.checkpoint.tensors[edit.weight]
                shift = self._product(weight, edit, first, rows)
                result = (result.double() + shift).to(rows.dtype)
        if scales:
            working = working_dtype(rows.dtype, *factors)
            for edit, along in zip(scales, factors, strict=True):
                part = along[first : first + rows.shape[0]] if edit.axis == 0 else along
                result = scale_rows(result, part, edit.axis, working)
        if rows.dtype is torch.float16 and not torch.isfinite(result).all() and torch.isfinite(rows).all():
            raise BadInput(
                f"{tensor.name} would overflow float16 once its norm's gain is folded in; "
                "convert a bfloat16 or float32 copy of the model"
            )
        return result

    def _product(self, weight: TensorInfo, edit: Shift, first: int, rows: torch.Tensor) -> torch.Tensor:
        by = self.vectors[edit.by]
        if edit.axis == 0:
            return contract(self.view(weight), by, 0)[first : first + rows.shape[0]]
        total = rows.shape[0]
        stride = max((weight.end - weight.begin) // max(weight.shape[0], 1), 1)
        step = max(_SLICE // stride, 1)
        parts = [
            contract(self.rows(weight, first + k, first + min(k + step, total)), by, edit.axis)
            for k in range(0, total, step)
        ]
        return torch.cat(parts)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]


def _write(work: _Work, source: Path, partial: Path, report: Report) -> dict[str, str]:
    checkpoint = work.checkpoint
    digests: dict[str, str] = {}
    total = checkpoint.weight_bytes
    done = 0
    by_file: Mapping[str, list[TensorInfo]] = defaultdict(list)
    for tensor in checkpoint.tensors.values():
        by_file[tensor.file].append(tensor)
    report("bytes", 0, total)
    with ThreadPoolExecutor(max_workers=2) as background:
        pending = []
        for file in checkpoint.files:
            mapped, start = work.maps[file]
            digest = hashlib.sha256()
            with (partial / file).open("wb", buffering=0) as out:
                hashing = background.submit(_put, out, digest, memoryview(mapped)[:start])
                for tensor in sorted(by_file[file], key=lambda t: t.begin):
                    for piece in work.pieces(tensor):
                        hashing.result()
                        hashing = background.submit(_put, out, digest, piece)
                        done += len(piece)
                        report("bytes", done, total)
                hashing.result()
            digests[file] = digest.hexdigest()
            pending.append(background.submit(_sync, partial / file))
        index = [checkpoint.index] if checkpoint.index else []
        for name in (*companions(files_of(source)), *index):
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, partial / name)
            digests[name] = hashlib.sha256((partial / name).read_bytes()).hexdigest()
            pending.append(background.submit(_sync, partial / name))
        for future in pending:
            future.result()
    return dict(sorted(digests.items()))


def _put(out: BinaryIO, digest: hashlib._Hash, piece: memoryview) -> None:
    digest.update(piece)
    while len(piece):
        piece = piece[out.write(piece) :]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
