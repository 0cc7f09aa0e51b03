"""A plan carried out: shard by shard in the source's own layout, never the whole model in memory.

Each output file starts with the source file's header, byte for byte: no tensor changes its shape, dtype or
place. What no edit touches is copied byte for byte; what an edit touches passes through memory in slices.
Everything is written to a sibling of the destination and renamed when all of it is on disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tricks.checkpoint import TensorInfo, read_checkpoint
from tricks.companions import companions, files_of
from tricks.editor import Editor
from tricks.errors import BadInput
from tricks.hashed_file import HashedFile
from tricks.plan import Plan
from tricks.progress import Report, silent


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote: file name -> SHA-256 in hex, and the bytes it moved."""

    files: dict[str, str]
    bytes_read: int
    bytes_written: int


def convert(plan: Plan, source: Path, out: Path, report: Report = silent) -> Conversion:
    """Carry out `plan` on the checkpoint in `source`, into the new folder `out`.

    Peak memory is a few buffers of 2 MiB, whatever the model's size.

    Raises:
        BadInput: `out` exists, the plan is for another checkpoint, a gain is not finite, a folded weight
            leaves the range of its dtype, or the disk is full. Nothing is left behind.
    """
    if out.exists():
        raise BadInput(f"{out} exists already; choose a folder that does not")
    checkpoint = read_checkpoint(source)
    work = Editor(source, checkpoint, plan.edits)
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


def _write(work: Editor, source: Path, partial: Path, report: Report) -> dict[str, str]:
    checkpoint = work.checkpoint
    digests: dict[str, str] = {}
    total = checkpoint.weight_bytes
    done = 0
    by_file: Mapping[str, list[TensorInfo]] = defaultdict(list)
    for tensor in checkpoint.tensors.values():
        by_file[tensor.file].append(tensor)
    report("bytes", 0, total)
    with ThreadPoolExecutor(max_workers=1) as syncing, _one_thread():
        pending = []
        for file in checkpoint.files:
            with HashedFile(partial / file) as out:
                out.put(work.header(file))
                for tensor in sorted(by_file[file], key=lambda t: t.begin):
                    for size in work.pour(tensor, out):
                        done += size
                        report("bytes", done, total)
            digests[file] = out.sha256
            pending.append(syncing.submit(_sync, partial / file))
        index = [checkpoint.index] if checkpoint.index else []
        for name in (*companions(files_of(source)), *index):
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, partial / name)
            digests[name] = hashlib.sha256((partial / name).read_bytes()).hexdigest()
            pending.append(syncing.submit(_sync, partial / name))
        for future in pending:
            future.result()
    return dict(sorted(digests.items()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: slices are small, and the other cores hash and write."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
