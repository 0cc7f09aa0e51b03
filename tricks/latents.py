"""Pairs of matrices with nothing between them: a projection to a few channels, and what reads those alone.

The latents of multi-head latent attention are such a pair where no norm stands in it, adapters of low rank
are; any basis of the channels between the two will do. Pairs are found on a specimen: a linear layer whose
input *is* a run of another's output, which nothing else reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from tricks.heads import Span
from tricks.responses import by_token, is_linear
from tricks.specimen import TOKENS, Hook, run, same


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


@dataclass
class _Run:
    """What the modules took and gave when the specimen ran once, in the order in which they ran."""

    given: dict[str, torch.Tensor]
    returned: dict[str, torch.Tensor]
    logits: torch.Tensor


def latents(small: nn.Module) -> list[Latent]:
    """All pairs in the specimen `small`, with spans of its sizes; the ones that a norm parts, too."""
    seen = _observe(small)
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


def _observe(small: nn.Module) -> _Run:
    given: dict[str, torch.Tensor] = {}
    returned: dict[str, torch.Tensor] = {}

    def note(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            tensors = isinstance(out, torch.Tensor) and args and isinstance(args[0], torch.Tensor)
            if tensors and path not in given and by_token(out.shape):
                given[path], returned[path] = args[0].clone(), out.clone()

        return hook

    leaves = [path for path, module in small.named_modules() if path and not list(module.children())]
    logits = run(small, _ids(), {path: note(path) for path in leaves})
    return _Run(given, returned, logits)


def _ids() -> torch.Tensor:
    return torch.arange(3, 3 + TOKENS).unsqueeze(0)


def _taken(path: str, out: torch.Tensor, given: torch.Tensor) -> Span | None:
    """The run of channels of `out` that `given` is, if it is one."""
    size = given.shape[-1]
    for start in range(out.shape[-1] - size + 1):
        if torch.equal(out[..., start : start + size].reshape(-1), given.reshape(-1)):
            return Span(path, start, size)
    return None


def _between(left: str, right: str, seen: _Run, small: nn.Module) -> str | None:
    """A module of the same parent that makes the input of `right` of channels of `left`."""
    parent = right.rpartition(".")[0]
    for path, returned in seen.returned.items():
        if path.rpartition(".")[0] == parent and path not in (left, right):
            makes = torch.equal(returned.flatten(), seen.given[right].flatten())
            if makes and _taken(left, seen.returned[left], seen.given[path]) is not None:
                return path
    return None


def _alone(small: nn.Module, found: list[Latent], seen: _Run) -> Iterator[Latent]:
    """Those of `found` whose channels nothing else reads, the others with the reason."""
    if not found:
        return
    if _unread(small, found, seen):
        yield from found
        return
    for one in found:
        if _unread(small, [one], seen):
            yield one
        else:
            yield Latent(
                one.left, one.rights, f"more than {_last(one.rights[0])} reads {_last(one.left.path)}"
            )


def _unread(small: nn.Module, found: list[Latent], seen: _Run) -> bool:
    """Whether the logits stay when the channels are not numbers and what should read them is as it was."""
    hooks: dict[str, Hook] = {}
    spans: dict[str, list[Span]] = {}
    for one in found:
        spans.setdefault(one.left.path, []).append(one.left)
        hooks |= {right: _replaced(seen.returned[right]) for right in one.rights}
    for path, broken in spans.items():
        fixed = seen.returned[path] if path in hooks else None
        hooks[path] = _broken(broken, fixed)
    return same(run(small, _ids(), hooks), seen.logits)


def _replaced(value: torch.Tensor) -> Hook:
    return lambda module, args, kwargs, out: value.view_as(out)


def _broken(spans: list[Span], fixed: torch.Tensor | None) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        result = (out if fixed is None else fixed.view_as(out)).clone()
        for span in spans:
            result[..., span.channels] = float("nan")
        return result

    return hook


def _last(path: str) -> str:
    return path.rpartition(".")[2]
