"""Pairs of matrices with nothing between them: a projection to a few channels, and what reads those alone.

The latents of multi-head latent attention are such a pair where no norm stands in it, adapters of low rank
are; any basis of the channels between the two will do. Pairs are found on a specimen: a linear layer whose
input *is* a run of another's output, which nothing else reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from tricks.heads import Span
from tricks.readers import Channels, Seen, read_alone, seen_of
from tricks.responses import is_linear


@dataclass(frozen=True)
class Latent:
    """Channels that the linear layers `rights` take as all of their input; `reason` says why they are not
    free, if they are not."""

    left: Span
    rights: tuple[str, ...]
    reason: str | None = None

    @property
    def where(self) -> str:
        """The module that both stand in."""
        return self.left.path.rpartition(".")[0]


def latents(small: nn.Module) -> list[Latent]:
    """All pairs in the specimen `small`, with spans of its sizes; the ones that a norm parts, too."""
    seen = seen_of(small)
    linear = [path for path in seen.given if is_linear(small.get_submodule(path))]
    siblings: dict[str, list[str]] = {}
    for path in linear:
        siblings.setdefault(path.rpartition(".")[0], []).append(path)
    free: dict[Span, list[str]] = {}
    parted: list[Latent] = []
    for paths in siblings.values():
        for left, right in combinations(paths, 2):
            span = _taken(left, seen.returned[left], seen.given[right])
            if span is not None:
                free.setdefault(span, []).append(right)
            elif norm := _between(left, right, seen, small):
                reason = f"{_last(norm)} stands between {_last(left)} and {_last(right)}"
                parted.append(Latent(Span(left, 0, seen.given[right].shape[-1]), (right,), reason))
    found = [Latent(span, tuple(rights)) for span, rights in free.items()]
    return parted + list(_alone(small, found, seen))


def _taken(path: str, out: torch.Tensor, given: torch.Tensor) -> Span | None:
    """The run of channels of `out` that `given` is, if it is one."""
    size = given.shape[-1]
    for start in range(out.shape[-1] - size + 1):
        if torch.equal(out[..., start : start + size].reshape(-1), given.reshape(-1)):
            return Span(path, start, size)
    return None


def _between(left: str, right: str, seen: Seen, small: nn.Module) -> str | None:
    """A module of the same parent that makes the input of `right` of channels of `left`."""
    parent = right.rpartition(".")[0]
    for path, returned in seen.returned.items():
        if path.rpartition(".")[0] == parent and path not in (left, right):
            makes = torch.equal(returned.flatten(), seen.given[right].flatten())
            if makes and _taken(left, seen.returned[left], seen.given[path]) is not None:
                return path
    return None


def _alone(small: nn.Module, found: list[Latent], seen: Seen) -> Iterator[Latent]:
    """Those of `found` whose channels nothing else reads, the others with the reason."""
    channels = [Channels((one.left,), one.rights) for one in found]
    for one, alone in zip(found, read_alone(small, channels, seen), strict=True):
        reason = f"more than {_last(one.rights[0])} reads {_last(one.left.path)}"
        yield one if alone else Latent(one.left, one.rights, reason)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
