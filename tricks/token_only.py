"""Which modules of a model compute something that depends on the token alone, found by trying.

The same tokens are fed in two orders. What a module says of a token in both is the same, to float64's
rounding, only if neither the token's position nor its neighbours enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tricks.specimen import Hook, run, same

TOKENS = 11
"""A length that no axis of any specimen has."""


@dataclass(frozen=True)
class Seen:
    """What one module received and returned when the specimen ran once: per token, flattened.

    `given` is None where the module's first argument is no tensor with an axis of tokens.
    """

    path: str
    given: torch.Tensor | None
    returned: torch.Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Observed:
    """One run of a specimen: the ids [2, TOKENS], the logits, and what depended on the token alone.

    `token_only` keeps the order in which the modules ran; `moved` names the modules that ran and did not
    depend on the token alone.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    token_only: dict[str, Seen]
    moved: tuple[str, ...]


def observe(model: nn.Module, seed: int = 0) -> Observed:
    """Run the specimen `model` on one set of tokens in two orders."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = torch.randperm(vocabulary, generator=generator)[:TOKENS]
    order = torch.arange(TOKENS).flip(0).roll(3)
    ids = torch.stack([tokens, tokens[order]])
    calls: dict[str, list[tuple[Seen, Seen] | None]] = {}

    def look(path: str) -> Hook:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
            given = _per_token(args[0]) if args else None
            returned = _per_token(out)
            entry = None
            if returned is not None and isinstance(out, torch.Tensor):
                shape = tuple(out.shape)
                first = Seen(path, None if given is None else given[0], returned[0], shape)
                second = Seen(path, None if given is None else given[1], returned[1], shape)
                entry = (first, second)
            calls.setdefault(path, []).append(entry)

        return hook

    logits = run(model, ids, {path: look(path) for path, _ in model.named_modules() if path})
    found: dict[str, Seen] = {}
    moved: list[str] = []
    for path, seen in calls.items():
        once = seen[0] if len(seen) == 1 else None
        if once is not None and same(once[0].returned[order], once[1].returned):
            found[path] = once[0]
        else:
            moved.append(path)
    return Observed(ids, logits, found, tuple(moved))


def _per_token(value: object) -> list[torch.Tensor] | None:
    """Both rows of a tensor, each [TOKENS, features]; None where it has no such axes."""
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[0] != 2:
        return None
    axes = [axis for axis, size in enumerate(value.shape) if size == TOKENS]
    if len(axes) != 1:
        return None
    return [row.reshape(TOKENS, -1) for row in value.detach().double().clone().movedim(axes[0], 1)]


def under(paths: Iterator[str] | list[str], root: str) -> list[str]:
    """Those of `paths` that lie inside the module `root`."""
    return [path for path in paths if path.startswith(root + ".")]
