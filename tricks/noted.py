"""What following a forward pass has noted of a model: its norms, their readers, and uses of parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice


@dataclass(frozen=True)
class Consumer:
    """A parameter that is contracted with a norm's output along `axis`."""

    param: str
    axis: int


@dataclass
class Norm:
    """One gain of the model and everything that reads what it scales."""

    module: str
    gain: str
    bias: str | None
    offset: float
    size: int
    consumers: set[Consumer] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)
    scaled_between: bool = False

    def block(self, reason: str) -> None:
        if reason not in self.blocks:
            self.blocks.append(reason)


def _uses() -> dict[str, set[tuple[int | None, str | None]]]:
    return defaultdict(set)


@dataclass
class Noted:
    """All that was noted so far, by the names of parameters (`unmeasured`: of modules).

    `bias_slots` maps a weight to the bias that is added to its product; `products` a weight to each
    (axis, gain) along which it was contracted, the gain None where no norm's output was; `others` a parameter
    to an operation that used it in any other way; `reached` are those that any operation used.
    """

    norms: dict[str, Norm] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    bias_slots: dict[str, str] = field(default_factory=dict)
    products: dict[str, set[tuple[int | None, str | None]]] = field(default_factory=_uses)
    others: dict[str, str] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    def join(self, other: Noted) -> None:
        """Add what was noted elsewhere of the same model."""
        for gain, norm in other.norms.items():
            mine = self.norms.setdefault(gain, norm)
            mine.consumers |= norm.consumers
            mine.scaled_between |= norm.scaled_between
            for reason in norm.blocks:
                mine.block(reason)
        self.unmeasured += [name for name in other.unmeasured if name not in self.unmeasured]
        self.bias_slots.update(other.bias_slots)
        self.reached |= other.reached
        for name, use in other.others.items():
            self.others.setdefault(name, use)
        for name, uses in other.products.items():
            self.products[name] |= uses

    def knows(self, params: Iterable[str]) -> bool:
        """Whether anything was noted of these parameters."""
        return any(
            name in self.reached or name in self.norms or name in self.products or name in self.others
            for name in params
        )

    def since(self, norms: int, unmeasured: int, params: Iterable[str]) -> Noted:
        """The norms and unmeasured modules behind the first so many, and what was noted of `params`."""
        names = list(params)
        return Noted(
            dict(islice(self.norms.items(), norms, None)),
            self.unmeasured[unmeasured:],
            {name: self.bias_slots[name] for name in names if name in self.bias_slots},
            {name: self.products[name] for name in names if name in self.products},
            {name: self.others[name] for name in names if name in self.others},
            {name for name in names if name in self.reached},
        )

    def renamed(self, new: Callable[[str], str]) -> Noted:
        """A copy in which every name and every text was put through `new`."""
        return Noted(
            {new(gain): _renamed(norm, new) for gain, norm in self.norms.items()},
            [new(name) for name in self.unmeasured],
            {new(weight): new(bias) for weight, bias in self.bias_slots.items()},
            {
                new(name): {(axis, gain and new(gain)) for axis, gain in uses}
                for name, uses in self.products.items()
            },
            {new(name): use for name, use in self.others.items()},
            {new(name) for name in self.reached},
        )


def _renamed(norm: Norm, new: Callable[[str], str]) -> Norm:
    return replace(
        norm,
        module=new(norm.module),
        gain=new(norm.gain),
        bias=norm.bias and new(norm.bias),
        consumers={Consumer(new(c.param), c.axis) for c in norm.consumers},
        blocks=[new(reason) for reason in norm.blocks],
    )
