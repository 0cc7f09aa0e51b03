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

    `modules`: those whose output is centred at run time, as their matrix has another use too. `lookups`: the
    embedding modules whose output has no mean now, one way or the other.
    """

    norms: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    edits: list[Center] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)


def centring(streams: Streams, subject: Subject, added: Collection[str]) -> Centring:
    """Which LayerNorms can become RMSNorms, and which writers then lose their mean.

    Args:
        added: tensors that earlier edits add to the checkpoint.
    """
    result = Centring()
    in_files = _in_files(streams, subject, added)
    fit: dict[str, frozenset[Writer]] = {}
    for name, normaliser in streams.normalisers.items():
        if not normaliser.centres:
            result.reasons[name] = "it takes no mean off, so it is an RMSNorm already"
            continue
        try:
            fit[name] = _writers(name, streams, subject, in_files)
        except Unfit as unfit:
            result.reasons[name] = str(unfit)

    wanted = {writer for writers in fit.values() if any(w in in_files for w in writers) for writer in writers}
    for name, writers in fit.items():
        if writers <= wanted:
            result.norms.append(name)
        else:
            result.reasons[name] = "all that writes to it would be centred at run time, which saves nothing"
    axes = {axis for writer in wanted for axis in in_files.get(writer, ())}
    result.edits = [Center(axis.tensor, axis.axis) for axis in sorted(axes, key=lambda a: (a.tensor, a.axis))]
    result.lookups = [streams.lookups[writer] for writer in wanted if writer in streams.lookups]
    result.modules = sorted(_module(writer, streams) or "" for writer in wanted if writer not in in_files)
    return result


def _in_files(streams: Streams, subject: Subject, added: Collection[str]) -> dict[Writer, tuple[Axis, ...]]:
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
    result = {
        writer: found[number]
        for number, writer in enumerate(free)
        if number in found and all(tensors[axis.tensor].dtype in FLOATS for axis in found[number])
    }
    weights = {writer.name: axes for writer, axes in result.items()}
    for writer in free:
        # A bias that the fold adds is not in the checkpoint yet: it stands beside its weight.
        beside = weights.get(writer.name.removesuffix("bias") + "weight", ())
        new = tuple(Axis(axis.tensor.removesuffix("weight") + "bias", 0) for axis in beside)
        if writer not in result and new and all(axis.tensor in added for axis in new):
            result[writer] = new
    return result


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
    return writers


def _module(writer: Writer, streams: Streams) -> str | None:
    """The module whose output can be centred at run time instead of the writer in the files."""
    if writer.axis is None:
        # Where each norm starts the stream anew, centring them all would cost what it saves.
        read = [stream for found in streams.reads.values() for stream in found if stream is not None]
        starts = {start for stream in read for start in stream.writers if start.axis is None}
        return writer.name if len(starts) == 1 else None
    return streams.lookups.get(writer)
