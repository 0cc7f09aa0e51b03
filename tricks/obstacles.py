"""What stands in the way of `skipless` in a model that is not: skips, found by trying, and norms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tricks.attention import attention_of
from tricks.heads import Attention
from tricks.specimen import TOKENS, Hook, NoSpecimen, run, same
from tricks.subject import Subject


def obstacles(subject: Subject) -> Iterator[tuple[str, str]]:
    """(attention block, reasons) for each attention block of a model."""
    try:
        small, found = attention_of(subject)
    except NoSpecimen as reason:
        yield "layers", str(reason)
        return
    if not found:
        yield "layers", "no attention block with an output projection was found"
        return
    known: dict[tuple[Any, ...], bool] = {}

    def around(layer: str, silenced: list[str]) -> bool:
        """`goes_around`, asked once for layers of one class with the same modules."""
        inside = tuple(path.removeprefix(layer) for path in silenced)
        key = (type(small.get_submodule(layer)), inside)
        if key not in known:
            known[key] = goes_around(small, layer, silenced)
        return known[key]

    norms = [norm.module for norm in subject.wiring.norms] + list(subject.wiring.unmeasured)
    for one in found:
        layer = _layer_of(one.where)
        others = _others(small, layer, found)
        between = sorted(norm.removeprefix(f"{layer}.") for norm in norms if norm.startswith(f"{layer}."))
        reasons = []
        if around(layer, [one.output]):
            reasons.append(f"a skip connection goes around {one.output.removeprefix(layer + '.')}")
        if others and around(layer, others):
            reasons.append(f"another goes around {_names(others, layer)}")
        if between:
            reasons.append("norms stand between the matrices: " + ", ".join(between))
        yield one.where, "; ".join(reasons) or "its class is not known to be skipless"


def _layer_of(path: str) -> str:
    """The outermost numbered module around `path`, or its parent."""
    numbered = re.match(r"[^\d]+\.\d+(?=\.)", path)
    return numbered[0] if numbered else path.rpartition(".")[0]


def _others(small: nn.Module, layer: str, found: list[Attention]) -> list[str]:
    """The modules of a layer that hold matrices, its attention blocks left out."""
    return [
        path
        for path, module in small.named_modules()
        if path.startswith(f"{layer}.")
        and any(p.ndim > 1 for p in module.parameters(recurse=False))
        and not any(path == one.output or path.startswith(f"{one.where}.") for one in found)
    ]


def _names(paths: list[str], layer: str) -> str:
    """The modules right around `paths`, without those inside others."""
    parents = {parent if (parent := path.rpartition(".")[0]) != layer else path for path in paths}
    outermost = [path for path in parents if not any(path.startswith(f"{other}.") for other in parents)]
    return ", ".join(sorted(path.removeprefix(f"{layer}.") for path in outermost))


def goes_around(small: nn.Module, layer: str, silenced: list[str]) -> bool:
    """Whether tokens still differ behind `layer` of the specimen when the modules `silenced` say nothing."""
    seen: list[torch.Tensor] = []
    ids = torch.arange(3, 3 + TOKENS).unsqueeze(0)
    run(small, ids, {**dict.fromkeys(silenced, _silence), layer: _keep(seen)})
    return not same(seen[0], seen[0][:, :1].expand_as(seen[0]))


def _silence(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
    if isinstance(out, tuple):
        return (torch.zeros_like(out[0]), *out[1:])
    return torch.zeros_like(out)


def _keep(seen: list[torch.Tensor]) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    return hook
