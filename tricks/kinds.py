"""When two modules are of one kind: the same code and settings, on parameters of the same shapes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

_OF_EVERY_MODULE = {*vars(nn.Module()), "forward"}
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def kind_of(module: nn.Module, number: int) -> Hashable:
    """Two modules with equal kinds run alike, unless their code asks for their number.

    Args:
        number: the module's place among its siblings; settings that hold it, as `layer_idx` does, are left
            out.
    """
    parts = []
    for path, each in module.named_modules(remove_duplicate=False):
        settings = [
            (name, "number" if _is_number(name, value, number) else _setting(value))
            for name, value in vars(each).items()
            if name not in _OF_EVERY_MODULE
        ]
        held = [
            (name, None if value is None else (tuple(value.shape), value.stride(), value.dtype, value.device))
            for table in (each._parameters, each._buffers)
            for name, value in table.items()
        ]
        hooks = (len(each._forward_hooks), len(each._forward_pre_hooks))
        names = tuple(name for name, child in each._modules.items() if child is None)
        parts.append((path, type(each), tuple(settings), tuple(held), hooks, names))
    return tuple(parts)


def _setting(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(map(_setting, value)))
    # By its type too: True, 1 and 1.0 are equal. What is not plain is the same only where it is one object.
    return (type(value), value if isinstance(value, PLAIN) else id(value))


def _is_number(name: str, value: Any, number: int) -> bool:
    return type(value) is int and value == number and "layer" in name


class AskedForNumber(BaseException):
    """Code looked at the number of its module; no `Exception`, which that code might catch."""


def _asked(*_: Any) -> NoReturn:
    raise AskedForNumber


class _NoNumber:
    """Stands where a number was, and may be handed on but not looked at."""

    __slots__ = ()
    __hash__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _asked
    __bool__ = __int__ = __float__ = __index__ = __str__ = __repr__ = __format__ = _asked
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _asked
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __divmod__ = __pow__ = __rpow__ = _asked
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lshift__ = __rshift__ = _asked
    __neg__ = __pos__ = __abs__ = __invert__ = __round__ = _asked


_HIDDEN = _NoNumber()


@contextmanager
def without_number(module: nn.Module, number: int) -> Iterator[None]:
    """Within this context the module's code cannot know its number.

    Raises:
        AskedForNumber: out of the block, where that code looks at it.
    """
    hidden = [
        (vars(each), name)
        for each in module.modules()
        for name, value in vars(each).items()
        if name not in _OF_EVERY_MODULE and _is_number(name, value, number)
    ]
    for settings, name in hidden:
        settings[name] = _HIDDEN
    try:
        yield
    finally:
        for settings, name in hidden:
            settings[name] = number
