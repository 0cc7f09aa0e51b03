"""Whether anything but certain linear layers reads certain channels, found by breaking the channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tricks.heads import Span
from tricks.responses import by_token
from tricks.specimen import TOKENS, Hook, run, same


@dataclass
class Seen:
    """What the modules took and gave when the specimen ran once, in the order in which they ran."""

    given: dict[str, torch.Tensor]
    returned: dict[str, torch.Tensor]
    logits: torch.Tensor


@dataclass(frozen=True)
class Channels:
    """Output channels of linear layers, and the linear layers that read them."""

    spans: tuple[Span, ...]
    readers: tuple[str, ...]


def seen_of(small: nn.Module) -> Seen:
    """One run of the specimen `small` on a few tokens."""
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
    return Seen(given, returned, logits)


def _ids() -> torch.Tensor:
    return torch.arange(3, 3 + TOKENS).unsqueeze(0)


def read_alone(small: nn.Module, found: list[Channels], seen: Seen) -> list[bool]:
    """For each entry whether nothing else reads its channels."""
    if not found or _unread(small, found, seen):
        return [True] * len(found)
    return [_unread(small, [one], seen) for one in found]


def _unread(small: nn.Module, found: list[Channels], seen: Seen) -> bool:
    """Whether the logits stay when the channels are not numbers and what should read them is as it was."""
    hooks: dict[str, Hook] = {}
    spans: dict[str, list[Span]] = {}
    for one in found:
        for span in one.spans:
            spans.setdefault(span.path, []).append(span)
        hooks |= {reader: _replaced(seen.returned[reader]) for reader in one.readers}
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
