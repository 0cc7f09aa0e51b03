"""What of a model's first layer depends on the token alone and can be looked up, found on a specimen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tricks.specimen import Hook, run, same
from tricks.token_only import TOKENS, Observed, Seen, observe, under


@dataclass(frozen=True)
class Baked:
    """A module whose output stands in the place of its input, from column `offset` of a piece on."""

    path: str
    piece: str
    offset: int


@dataclass(frozen=True)
class FirstLayer:
    """What can be looked up: `pieces` (module -> width), modules before and after them that then have nothing
    left to do (`dropped`, `baked`), and the feed-forward whose output joins the residual stream (`zero`)."""

    pieces: dict[str, int]
    dropped: tuple[str, ...]
    baked: tuple[Baked, ...]
    zero: str | None

    @property
    def gone(self) -> list[str]:
        """Modules whose parameters the result does not need."""
        zero = [self.zero] if self.zero else []
        return [*self.pieces, *zero, *self.dropped, *(baked.path for baked in self.baked)]


class Unfit(Exception):
    """Why the first layer cannot be tabulated."""


def first_layer(small: nn.Module, embedding: str) -> FirstLayer:
    """What of the specimen `small` can be looked up by token id; widths are the specimen's.

    Raises:
        Unfit: nothing can be.
    """
    seen = observe(small)
    _refuse_token_types(small, seen, embedding)
    candidates = _candidates(small, seen, embedding)
    if not candidates:
        raise Unfit(_why_none(small))
    downstream = {later for path in candidates for later in _after(small, seen, path, candidates)}
    pieces = [path for path in candidates if path not in downstream]
    baked = _baked(small, seen, pieces, candidates)
    fixed = {path: _replaced(small, seen, path) for path in pieces}
    dropped: list[str] = []
    for path in _leaves(small, seen, pieces, [*pieces, *(b.path for b in baked)]):
        broken = {**fixed, **dict.fromkeys((*dropped, path), _nan)}
        if same(run(small, seen.ids, broken), seen.logits):
            dropped.append(path)
    for path in reversed(pieces):
        if len(pieces) > 1 and _joins(small, seen, embedding, path, fixed, dropped):
            rest = {other: _width(seen, other) for other in pieces if other != path}
            return FirstLayer(rest, tuple(dropped), tuple(baked), path)
    return FirstLayer({path: _width(seen, path) for path in pieces}, tuple(dropped), tuple(baked), None)


def _refuse_token_types(small: nn.Module, seen: Observed, embedding: str) -> None:
    for path, module in small.named_modules():
        if isinstance(module, nn.Embedding) and path != embedding and path in seen.token_only:
            returned = seen.token_only[path].returned
            if same(returned, returned[:1].expand_as(returned)):
                raise Unfit(f"{path} adds a token's type to its embedding, which the token id does not tell")


def _candidates(small: nn.Module, seen: Observed, embedding: str) -> list[str]:
    """The outermost token-only modules with matrices, in the first layer that has any, as they ran."""

    def has_matrix(path: str) -> bool:
        return any(p.ndim > 1 for p in small.get_submodule(path).parameters())

    inside = [
        path
        for path, one in seen.token_only.items()
        if path != embedding and _layer_of(path) and len(one.shape) == 3 and has_matrix(path)
    ]
    outermost = [path for path in inside if not any(path in under([path], other) for other in inside)]
    layers = {_layer_of(path) for path in outermost}
    first = next((path for path in seen.token_only if _layer_of(path) in layers), None)
    return [path for path in outermost if first is not None and _layer_of(path) == _layer_of(first)]


def _layer_of(path: str) -> str | None:
    """The first layer that `path` lies in, as `model.layers.0`; None outside and in later ones."""
    match = re.match(r"((?:.*?\.)?0)\.", path)
    return match[1] if match and not re.search(r"\.[1-9]\d*\.", "." + match[1] + ".") else None


def _after(small: nn.Module, seen: Observed, path: str, candidates: Iterable[str]) -> set[str]:
    """Those of `candidates` that read what the module `path` says."""
    reached: set[str] = set()

    def look(other: str) -> Hook:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].isnan().any():
                reached.add(other)

        return hook

    hooks: dict[str, Hook] = {other: look(other) for other in candidates if other != path}
    run(small, seen.ids, {**hooks, path: _nan})
    return reached


def _baked(small: nn.Module, seen: Observed, pieces: list[str], candidates: list[str]) -> list[Baked]:
    """Token-only modules that read a run of a piece's channels and return as many, as norms of keys do."""
    found = []
    for path in _leaves(small, seen, pieces, candidates, parameterless=True):
        one = seen.token_only[path]
        if one.given is None or one.given.shape != one.returned.shape or torch.equal(one.given, one.returned):
            continue
        for piece in pieces:
            whole = seen.token_only[piece].returned
            offset = _slice_of(one.given, whole)
            if offset is not None:
                found.append(Baked(path, piece, offset))
                break
    return found


def _slice_of(part: torch.Tensor, whole: torch.Tensor) -> int | None:
    count = part.shape[1]
    starts = range(whole.shape[1] - count + 1)
    return next((at for at in starts if torch.equal(whole[:, at : at + count], part)), None)


def _leaves(
    small: nn.Module, seen: Observed, pieces: list[str], without: list[str], parameterless: bool = False
) -> list[str]:
    """The first layer's token-only modules without submodules, but for those in `without` and inside them."""
    layer = _layer_of(pieces[0])
    return [
        path
        for path in seen.token_only
        if _layer_of(path) == layer
        and path not in without
        and not any(under([path], other) for other in without)
        and not list(small.get_submodule(path).children())
        and (parameterless or list(small.get_submodule(path).parameters()))
    ]


def _joins(
    small: nn.Module, seen: Observed, embedding: str, path: str, fixed: dict[str, Hook], dropped: list[str]
) -> bool:
    """Whether the piece `path` may be added to the embedding instead: it only joins the residual stream."""
    size = small.get_input_embeddings().embedding_dim  # type: ignore[operator]
    if _width(seen, path) != size or not list(small.get_submodule(path).children()):
        return False
    added = _by_row(seen, path)

    def add(module: nn.Module, args: object, kwargs: object, out: torch.Tensor) -> torch.Tensor:
        return out + added.view_as(out)

    def zero(module: nn.Module, args: object, kwargs: object, out: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(out)

    hooks: dict[str, Hook] = {**fixed, **dict.fromkeys(dropped, _nan), path: zero, embedding: add}
    return same(run(small, seen.ids, hooks), seen.logits)


def _width(seen: Observed, path: str) -> int:
    return int(seen.token_only[path].returned.shape[1])


def _by_row(seen: Observed, path: str) -> torch.Tensor:
    """What a token-only module says of both rows of ids [2, TOKENS, features]."""
    one: Seen = seen.token_only[path]
    places = [(seen.ids[0] == token).nonzero().item() for token in seen.ids[1]]
    return torch.stack([one.returned, one.returned[torch.tensor(places)]])


def _replaced(small: nn.Module, seen: Observed, path: str) -> Hook:
    value = _by_row(seen, path)
    return lambda module, args, kwargs, out: value.view_as(out)


def _nan(module: nn.Module, args: object, kwargs: object, out: torch.Tensor) -> torch.Tensor:
    return torch.full_like(out, float("nan"))


def _why_none(small: nn.Module) -> str:
    """Why no projection depends on the token alone: positions, or other tokens."""
    inputs: list[torch.Tensor] = []

    def look(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
        value = args[0] if args else kwargs.get("hidden_states")
        if isinstance(value, torch.Tensor) and value.ndim == 3:
            inputs.append(value)

    first = next((path for path, _ in small.named_modules() if re.search(r"(^|\.)0$", path)), None)
    if first is not None:
        run(small, torch.full((2, TOKENS), 5), {first: look})
        if inputs and not same(inputs[0], inputs[0][:, :1].expand_as(inputs[0])):
            return "absolute positions are added to the embedding, on which its whole first layer depends"
    return "nothing in its first layer depends on the token alone"
