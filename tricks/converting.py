"""A plan carried out: shard by shard in the source's own layout, never the whole model in memory.

A file in which no tensor changes its shape or dtype starts with the source file's header, byte for byte.
What no edit touches is copied byte for byte; what an edit touches passes through memory in slices. Everything
is written to a sibling of the destination and renamed when all of it is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tricks.checkpoint import read_checkpoint
from tricks.companions import companions, files_of
from tricks.conversion import Conversion
from tricks.editor import Editor
from tricks.errors import BadInput
from tricks.hashed_file import HashedFile
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.ship import expected_config, shipped_code
from tricks.threads import one_thread


def convert(
    plan: Plan, source: Path, out: Path, report: Report = silent, settling: bool = True
) -> Conversion:
    """Carry out `plan` on the checkpoint in `source`, into the new folder `out`.

    Peak memory is a few buffers of 2 MiB, whatever the model's size, but for a trick that is settled by
    activations (slim, and approximate where its range is observed): that runs the source. Without `settling`
    such a plan is carried out as it stands.

    Raises:
        BadInput: `out` exists, the plan is for another checkpoint, a gain is not finite, a folded weight
            leaves the range of its dtype, or the disk is full. Nothing is left behind.
    """
    if out.exists():
        raise BadInput(f"{out} exists already; choose a folder that does not")
    checkpoint = read_checkpoint(source)
    planned = plan
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    scratch = partial.with_name(f"{partial.stem}.scratch.partial")
    try:
        partial.mkdir()
        if settling and "slim" in plan.parts:
            from tricks.slim_settle import settle  # late: it needs tokenizers, which no other trick does

            scratch.mkdir()
            plan = settle(plan, source, scratch, report)
        if settling and "approximate" in plan.parts:
            from tricks.approximate_settle import settle as fit_to_text

            plan = fit_to_text(plan, source, report)
        work = Editor(source, checkpoint, plan.edits)
        files = _write(work, plan, source, partial, report)
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
        shutil.rmtree(scratch, ignore_errors=True)
    written = sum((out / name).stat().st_size for name in files)
    settled = None if plan is planned else plan.to_json()
    return Conversion(files, work.reader.bytes_read, written, work.conditions, settled)


def _write(work: Editor, plan: Plan, source: Path, partial: Path, report: Report) -> dict[str, str]:
    digests: dict[str, str] = {}
    total = work.weight_bytes
    done = 0
    report("bytes", 0, total)
    # Slices are small, and the other cores hash and write.
    with ThreadPoolExecutor(max_workers=1) as syncing, one_thread():
        pending = []
        for file in work.files:
            with HashedFile(partial / file) as out:
                out.put(work.header(file))
                for value in work.tensors(file):
                    for size in work.pour(value, out):
                        done += size
                        report("bytes", done, total)
            digests[file] = out.sha256
            pending.append(syncing.submit(_sync, partial / file))
        for name, data in _texts(work, plan, source):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(data)
            digests[name] = hashlib.sha256((partial / name).read_bytes()).hexdigest()
            pending.append(syncing.submit(_sync, partial / name))
        for future in pending:
            future.result()
    return dict(sorted(digests.items()))


def _texts(work: Editor, plan: Plan, source: Path) -> Iterator[tuple[str, bytes]]:
    """The files beside the weights: the source's own, byte for byte, but for what the plan changes."""
    checkpoint = work.checkpoint
    for name in companions(files_of(source)):
        if name != "config.json" or not (plan.config or plan.parts):
            yield name, (source / name).read_bytes()
    if checkpoint.index is not None:
        index = work.index(json.loads((source / checkpoint.index).read_bytes()))
        own = (source / checkpoint.index).read_bytes()
        yield checkpoint.index, own if index is None else _json(index)
    if plan.parts:
        yield from ((name, text.encode()) for name, text in shipped_code(plan, checkpoint.config).items())
    if plan.config or plan.parts:
        yield (
            "config.json",
            _json(expected_config(plan, checkpoint.config)),
        )


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
