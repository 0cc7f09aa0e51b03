"""The attention blocks of a model, as experiments on a specimen find them (see `heads` and `free_keys`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tricks.free_keys import add_free_keys
from tricks.heads import Attention, Head, read_heads
from tricks.readers import Channels, read_alone, seen_of
from tricks.responses import blocks_of
from tricks.specimen import NoSpecimen, specimen
from tricks.subject import Subject

LEAST_HEAD = 4
"""Smallest head of a specimen: with fewer channels, chance agreement could pass for structure."""

WIDEST = 512
"""Widest specimen beyond the first that is tried: each of its channels is moved once."""


def attention_of(subject: Subject) -> tuple[nn.Module, list[Attention]]:
    """A specimen as deep as the subject whose heads are large enough to tell, and its attention blocks.

    Raises:
        NoSpecimen: there is none.
    """
    small = specimen(subject, whole_depth=True)
    found = attentions(small)
    for number in range(1, 4):
        if _tell(found, subject):
            return small, found
        try:
            small = specimen(subject, whole_depth=True, number=number)
        except NoSpecimen:
            break
        if _width(small) > WIDEST:
            break
        found = attentions(small)
    small = small if _width(small) <= WIDEST else specimen(subject, whole_depth=True)
    found = attentions(small)
    return small, found if _tell(found, subject) else [_without_part_of_keys(one) for one in found]


def _width(small: nn.Module) -> int:
    return int(small.get_input_embeddings().embedding_dim)  # type: ignore[operator]


def _tell(found: list[Attention], subject: Subject) -> bool:
    """Whether the heads that were found have the proportions of the subject's."""
    heads = [head for one in found for head in one.heads]
    # Heads of one channel look like channels that are weighted one by one.
    if min((head.value.size for head in heads), default=1) < LEAST_HEAD:
        return not found
    if not any(head.key and head.key.size < head.value.size for head in heads):
        return True
    # A share of a head that is rotated is rounded to pairs of channels.
    shares = list(_rotated(subject.config.to_dict()))
    return all(head.value.size * share % 2 == 0 for head in heads for share in shares)


def _rotated(fields: dict[str, Any]) -> Iterator[float]:
    """The shares of a head that a configuration and those inside it say are rotated."""
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _rotated({str(name): inside for name, inside in value.items()})
        elif isinstance(value, float) and 0 < value < 1 and "rotary" in key:
            yield value


def _without_part_of_keys(one: Attention) -> Attention:
    """`one` without free keys that are a part of a head: how large a part is not known."""
    if not any(head.key and head.key.size < head.value.size for head in one.heads):
        return one
    reason = "part of its keys is rotated, and no small model of its class tells how large a part"
    heads = [Head(head.value, head.outputs) for head in one.heads]
    return Attention(one.where, one.output, heads, one.value_reason, reason)


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
