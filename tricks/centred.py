"""The form `center`: LayerNorm as RMSNorm of a residual stream that has no mean.

Source: Graef et al., "FlashNorm", section 3.5: with V[:, j] − mean over the channels in place of every V that
writes to the stream, its bias and all embeddings alike, LayerNorm and RMSNorm of the stream are one, with the
same ε. The LayerNorm of a stock class finds a mean of zero and gives the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tricks.deferred import Unfit
from tricks.edits import Center
from tricks.layout import FLOATS, Axis, locate
from tricks.streams import Stream, Streams, Writer
from tricks.subject import Subject


@dataclass
class Centring:
    """The norms that become RMSNorms, why others do not, and what that takes.

    `modules`: those whose output is centred at run time, as their matrix has another use that must not change.
    """

    norms: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    edits: list[Center] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


def centring(streams: Streams, subject: Subject) -> Centring:
    """Which LayerNorms can become RMSNorms, and which writers then lose their mean."""
    result = Centring()
    in_files = _in_files(streams, subject)
    wanted: set[Writer] = set()
    for name, normaliser in streams.normalisers.items():
        if not normaliser.centres:
            result.reasons[name] = "it takes no mean off, so it is an RMSNorm already"
            continue
        try:
            writers = _writers(name, streams, subject, in_files)
        except Unfit as unfit:
            result.reasons[name] = str(unfit)
            continue
        result.norms.append(name)
        wanted |= writers
    axes = {axis for writer in wanted for axis in in_files.get(writer, ())}
    result.edits = [Center(axis.tensor, axis.axis) for axis in sorted(axes, key=lambda a: (a.tensor, a.axis))]
    result.modules = sorted(_module(writer, streams) or "" for writer in wanted if writer not in in_files)
    return result


def _in_files(streams: Streams, subject: Subject) -> dict[Writer, tuple[Axis, ...]]:
    """The writers that can be centred in the files, and where they are there."""
    free = sorted(
        (
            Writer(name, axis)
            for name, axes in streams.uses.items()
            for axis in axes
            if len(axes) == 1 and axis is not None and Writer(name, axis) not in streams.blocked
        ),
        key=lambda writer: writer.name,
    )
    marks = {writer.name: (writer.axis or 0, number) for number, writer in enumerate(free)}
    found = locate(subject.model, subject.checkpoint, marks)
    tensors = subject.checkpoint.tensors
    return {
        writer: found[number]
        for number, writer in enumerate(free)
        if number in found and all(tensors[axis.tensor].dtype in FLOATS for axis in found[number])
    }


def _writers(
    name: str, streams: Streams, subject: Subject, in_files: Collection[Writer]
) -> frozenset[Writer]:
    """The writers of the stream that the norm `name` reads.

    Raises:
        Unfit: one of them cannot lose its mean.
    """
    found = streams.reads[name]
    if any(stream is None for stream in found):
        raise Unfit("what it reads is no sum of what parameters write")
    whole = [stream for stream in found if isinstance(stream, Stream)]
    writers = frozenset[Writer]().union(*(stream.writers for stream in whole))
    for stream in whole:
        if stream.also is not None:
            raise Unfit(f"what it reads is also {stream.also}")
    for writer in sorted(writers, key=lambda writer: writer.name):
        if writer in streams.blocked:
            raise Unfit(f"{writer.name} writes to it, and {streams.blocked[writer]}")
        if writer not in in_files and _module(writer, streams) is None:
            raise Unfit(f"{writer.name} writes to it and cannot lose its mean: it has other uses")
        if (trick := subject.claimed(writer.name)) is not None:
            raise Unfit(f"{writer.name} is part of {trick}")
    if not any(writer in in_files for writer in writers):
        raise Unfit("all that it reads would have to be centred at run time, which saves nothing")
    return writers


def _module(writer: Writer, streams: Streams) -> str | None:
    """The module whose output can be centred at run time instead of the writer in the files."""
    if writer.axis is None:
        # Where each norm starts the stream anew, centring them all would cost what it saves.
        starts = {w for found in streams.reads.values() for s in found if s for w in s.writers if w.axis is None}
        return writer.name if len(starts) == 1 else None
    return streams.lookups.get(writer)
