"""Running a model without weights, with its norms known by what they compute.

`Watch` measures every module that may be a norm when it is first called, parameterless ones included, and
hides what goes on inside it. Tracers derive from it and follow what goes on outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from tricks.answers import Answers
from tricks.errors import BadInput
from tricks.inputs import sample_inputs
from tricks.labels import SHAPE_ONLY
from tricks.model import first_line, spread_experts
from tricks.normaliser import Normaliser, measure_normaliser
from tricks.quiet import quiet
from tricks.shapes import ShapeMemory


class Watch(TorchDispatchMode):
    """One forward pass; see the module.

    `normalisers` holds the modules that are one, by path; `asked` names those of them whose parameters are
    read by code that is not their own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.normalisers: dict[str, Normaliser] = {}
        self.asked: set[str] = set()
        self.names = {module: name for name, module in model.named_modules()}
        self._inside: nn.Module | None = None
        self._measured: dict[Any, Normaliser | None] = {}
        self.handles: list[Any] = []
        self._answers = Answers(high=False)
        self._shapes = ShapeMemory()
        for module in self.names:
            small = all(p.ndim <= 1 for p in module.parameters())
            if small and next(module.children(), None) is None:
                self.handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self.handles.append(module.register_forward_hook(self._leave, with_kwargs=True))

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._inside is not None:
            return
        normaliser = self._measure(module, args, kwargs)
        if normaliser is not None:
            self._inside = module
            self.normalisers[self.names[module]] = normaliser
            self.enters(self.names[module], normaliser, _tensor(args, kwargs))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._inside is module:
            self._inside = None
            self.leaves(self.names[module], self.normalisers[self.names[module]], output)

    def _measure(self, module: nn.Module, args: Any, kwargs: Any) -> Normaliser | None:
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, tuple))}
        shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in tree_leaves((args, kwargs))]
        parameters = [(n, tuple(p.shape)) for n, p in module.named_parameters()]
        key = (type(module), repr(plain), repr(shapes), repr(parameters))
        if key not in self._measured:
            with _disable_current_modes():
                self._measured[key] = measure_normaliser(module, args, kwargs)
        return self._measured[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = self._answers.to(func, args)
        if answer is not None:
            return answer(args[0])
        out = self._shapes.run(func, args, kwargs)
        if self._inside is None and func not in SHAPE_ONLY:
            self.follow(func, args, kwargs, out)
        return out

    @contextmanager
    def spying(self) -> Iterator[None]:
        """Notes who reads a module's parameters."""
        original = nn.Module.__getattr__

        def spy(module: nn.Module, name: str) -> Any:
            if module is not self._inside and name in module._parameters and module in self.names:
                self.asked.add(self.names[module])
            return original(module, name)

        nn.Module.__getattr__ = spy  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__getattr__ = original  # type: ignore[method-assign]

    # --- what tracers do ---------------------------------------------------------------------------

    def enters(self, name: str, normaliser: Normaliser, x: torch.Tensor) -> None:
        """The normaliser `name` is called with `x`."""

    def leaves(self, name: str, normaliser: Normaliser, out: torch.Tensor) -> None:
        """The normaliser `name` returns `out`."""

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation outside of every normaliser has given `out`."""

    def returns(self, output: Any) -> None:
        """The model, or a model inside it, returns `output`."""


W = TypeVar("W", bound=Watch)


def watch(tracer: type[W], model: nn.Module) -> W:
    """Run `model` (on meta) once under a tracer; the tracer, which has then seen all of it.

    Raises:
        BadInput: the modelling code cannot be run without weights.
    """
    spread_experts(model)
    problem = "it takes no text"
    for inputs in sample_inputs(model):
        mode = tracer(model)
        try:
            with quiet(), torch.no_grad(), mode.spying(), mode:
                mode.returns(model(**inputs))
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
            problem = first_line(error)
            continue
        finally:
            for handle in mode.handles:
                handle.remove()
        return mode
    raise BadInput(
        f"{type(model).__name__} cannot be run without weights ({problem}), so it is not known what reads "
        "its norms; report this architecture"
    )


def is_linear(module: nn.Module) -> bool:
    """Whether `module` computes x·W (+ bias) and nothing else, in a way that shipped code can take over."""
    return type(module) is nn.Linear or type(module) is Conv1D


def _tensor(args: Any, kwargs: Any) -> torch.Tensor:
    return next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
