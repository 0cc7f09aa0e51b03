"""The attention blocks of a model, as experiments on a specimen find them (see `heads` and `free_keys`)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from tricks.free_keys import add_free_keys
from tricks.heads import Attention, read_heads
from tricks.readers import Channels, read_alone, seen_of
from tricks.responses import blocks_of
from tricks.specimen import NoSpecimen, specimen
from tricks.subject import Subject

LEAST_HEAD = 4
"""Smallest head of a specimen: with fewer channels, chance agreement could pass for structure."""


def attention_of(subject: Subject) -> tuple[nn.Module, list[Attention]]:
    """A specimen as deep as the subject whose heads are large enough to tell, and its attention blocks.

    Raises:
        NoSpecimen: there is none.
    """
    small = specimen(subject, whole_depth=True)
    found = attentions(small)
    for number in range(1, 4):
        # Heads of one channel look like channels that are weighted one by one.
        if min((head.value.size for one in found for head in one.heads), default=1) >= LEAST_HEAD:
            break
        try:
            small = specimen(subject, whole_depth=True, number=number)
        except NoSpecimen:
            break
        found = attentions(small)
    return small, found


def attentions(small: nn.Module) -> list[Attention]:
    """All attention blocks of the specimen `small`, with spans of the specimen's sizes."""
    if small not in _KNOWN:
        blocks = {block.where: block for block in blocks_of(small) if block.mixes}
        found = [read_heads(block) for block in blocks.values()]
        _check_readers(small, [one for one in found if one.heads])
        add_free_keys(small, found, blocks)
        _KNOWN[small] = found
    return _KNOWN[small]


def _check_readers(small: nn.Module, found: list[Attention]) -> None:
    """Take its heads from a block whose values something beside its output projection reads."""
    channels = [Channels(tuple(head.value for head in one.heads), (one.output,)) for one in found]
    for one, alone in zip(found, read_alone(small, channels, seen_of(small)), strict=True):
        if not alone:
            one.heads, one.value_reason = [], f"more than {one.output} reads its values"


_KNOWN: WeakKeyDictionary[nn.Module, list[Attention]] = WeakKeyDictionary()
"""Specimen -> what was found: the tricks of one recipe ask one after the other."""
