"""Projections stored without the identity block that MatShrink gave them.

Each block of n rows of such a projection holds an n by n identity in the input channels `index`; what is
stored is the rest [blocks, n, in - n]. A block's output is then x[index] plus the product of the rest with
the other channels of x.

Source: Graef et al., "MatShrink", proposition 1, in its dual form (the identity is on the input's side).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FEW = 32
"""Tokens up to which the stored form is used as it is; beyond, gathering costs more than it saves."""


def install(model: nn.Module, options: dict[str, Any]) -> None:
    """Exchange the projections named in `options["linears"]`.

    Each names its `path`, its sizes `inputs` and `outputs`, and `groups` of equal blocks: `size` rows each,
    from row `first` on, every `step` rows, `count` of them.
    """
    for entry in options["linears"]:
        parent, _, name = entry["path"].rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, Shrunk(getattr(owner, name), entry))


class Shrunk(nn.Module):
    def __init__(self, stock: Any, entry: dict[str, Any]) -> None:
        super().__init__()
        self.in_features, self.out_features = entry["inputs"], entry["outputs"]
        like: dict[str, Any] = {"dtype": stock.weight.dtype, "device": stock.weight.device}
        taken: list[int] = []
        self._groups = len(entry["groups"])
        for number, group in enumerate(entry["groups"]):
            count, size = group["count"], group["size"]
            rest = torch.empty(count, size, self.in_features - size, **like)
            self.register_parameter(f"shrunk_{number}", nn.Parameter(rest))
            index = torch.arange(size, dtype=torch.int32, device=like["device"]).expand(count, size).clone()
            self.register_buffer(f"index_{number}", index)
            for block in range(count):
                start = group["first"] + block * group["step"]
                taken += range(start, start + size)
        untouched = sorted(set(range(self.out_features)) - set(taken))
        self.dense = (
            nn.Parameter(torch.empty(len(untouched), self.in_features, **like)) if untouched else None
        )
        self.bias = None if stock.bias is None else nn.Parameter(torch.empty(self.out_features, **like))
        rows = [*untouched, *taken]
        place = {row: at for at, row in enumerate(rows)}
        self._order = None if rows == sorted(rows) else [place[row] for row in range(self.out_features)]

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix [out, in], for many tokens at once."""
        parts: list[torch.Tensor] = [] if self.dense is None else [self.dense]
        for rest, index, others in self._blocks():
            full = rest.new_zeros(rest.shape[0], rest.shape[1], self.in_features)
            full.scatter_(2, others.unsqueeze(1).expand_as(rest), rest)
            full.scatter_(2, index.unsqueeze(2), 1.0)
            parts.append(full.flatten(0, 1))
        whole = torch.cat(parts)
        return whole if self._order is None else whole[self._order]

    def _blocks(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rest, index, the other channels) of each group."""
        rests = [getattr(self, f"shrunk_{number}") for number in range(self._groups)]
        return [(rest, *channels) for rest, channels in zip(rests, self._channels(), strict=True)]

    def _channels(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(index, the other channels) of each group; made anew only when the stored ones change."""
        stored = [getattr(self, f"index_{number}") for number in range(self._groups)]
        key = [(index.data_ptr(), index._version) for index in stored]
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            found = []
            for index in stored:
                free = torch.ones(len(index), self.in_features, dtype=torch.bool, device=index.device)
                free.scatter_(1, index.long(), False)
                found.append((index.long(), free.nonzero()[:, 1].view(len(index), -1)))
            kept = self.__dict__["_kept"] = key, found
        channels: list[tuple[torch.Tensor, torch.Tensor]] = kept[1]
        return channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > FEW * self.in_features:
            return nn.functional.linear(x, self.weight, self.bias)
        parts = [] if self.dense is None else [nn.functional.linear(x, self.dense)]
        for rest, index, others in self._blocks():
            block = torch.einsum("...hr,hnr->...hn", x[..., others], rest) + x[..., index]
            parts.append(block.flatten(-2))
        y = torch.cat(parts, -1)
        if self._order is not None:
            place = self.__dict__.get("_place")
            if place is None or place.device != y.device:
                place = self.__dict__["_place"] = torch.tensor(self._order, device=y.device)
            y = y[..., place]
        return y if self.bias is None else y + self.bias
