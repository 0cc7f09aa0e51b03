"""FlashNorm at run time: norms without gain, scales after the product, norms that are not there.

Source: Graef et al., "FlashNorm", https://arxiv.org/abs/2407.09577. Notation: x [..., n] is a norm's input, W
a linear layer's weight, s = 1/√(mean(x²) + ε) one number per token.

`install(model, options)` exchanges the modules that `options` names, and only those; parameters keep their
names. Rows say what takes a module's place; `[0-3,7]` in a name stands for the layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from .flash_kernel import MOST_TOKENS, norm_linear


class Flash(nn.Module):
    """(offset + gain) · x/√(mean(x²) + ε) + bias along the last axis; of x − mean(x) where `centres`.

    `gain` and `bias` name parameters; None means that there is nothing to multiply by, or to add.
    (No "Norm" in the name: modelling code initialises what is called so, gain or none.)
    """

    def __init__(self, stock: nn.Module, row: dict[str, Any]) -> None:
        super().__init__()
        if not row.get("weightless"):
            for name, parameter in stock.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
        self.eps: float = row["eps"]
        self.centres: bool = row.get("centres", False)
        self.gain: str | None = row.get("gain")
        self.bias_name: str | None = row.get("bias")
        self.offset: float = row.get("offset", 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape[-1:]
        bare = self.gain is None and self.bias_name is None
        wide = x if bare else x.float()
        if self.centres:
            return self.affine(functional.layer_norm(wide, shape, eps=self.eps), x.dtype)
        return self.affine(functional.rms_norm(wide, shape, eps=self.eps), x.dtype)

    def affine(self, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`y` with gain and bias, in `dtype`."""
        if self.gain is not None:
            y = y * (self.offset + getattr(self, self.gain).to(y.dtype))
        if self.bias_name is not None:
            y = y + getattr(self, self.bias_name).to(y.dtype)
        return y.to(dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, centres={self.centres}, gain={self.gain}, bias={self.bias_name}"


class Deferred(Flash):
    """A norm that only measures: x (times its gain, if it kept one) goes on unscaled.

    The linear layers that read it apply s after their product (proposition 2), so that neither waits for the
    other; `mean_square` [..., 1] is 1/s² of the last call, in float32, computed when somebody asks.
    """

    last: torch.Tensor
    square: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last, self.square = x, None
        if x.numel() > MOST_TOKENS * x.shape[-1]:  # no kernel measures it anew, and x should not be kept
            self.last = self.mean_square
        return x if self.gain is None else self.affine(x, x.dtype)

    @property
    def mean_square(self) -> torch.Tensor:
        if self.square is None:
            self.square = self.last.float().square().mean(-1, keepdim=True) + self.eps
        return self.square


class Corrected(Flash):
    """A norm behind a removed norm: RMSNorm(s·y) of y (proposition 3), exact with ε₂·(mean(x²) + ε₁) for ε.

    `axes` are the axes of its input at which the tokens' axes stand.
    """

    def __init__(self, stock: nn.Module, row: dict[str, Any], before: Deferred) -> None:
        super().__init__(stock, row)
        self.axes: list[int] = row["axes"]
        self.before = (before,)  # in a tuple: it is no child of this module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float16:  # its range is narrow: there the linear layer has applied s
            return super().forward(x)
        square = self.before[0].mean_square
        shape = [1] * x.ndim
        for axis, size in zip(self.axes, square.shape, strict=False):
            shape[axis] = size
        y = x.float()
        if self.centres:
            y = y - y.mean(-1, keepdim=True)
        variance = y.square().mean(-1, keepdim=True) + self.eps * square.view(shape).to(y.device)
        return self.affine(y * torch.rsqrt(variance), x.dtype)


class _After:
    """s after the product, in float32: for all columns, or for those `columns` that no norm reads."""

    before: tuple[Deferred]
    columns: list[tuple[int, int]] | None

    def scaled(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(x·weight)·s + bias in x's dtype; weight [out, in]."""
        norm = self.before[0]
        if self.columns is None and norm.gain is None and norm.bias_name is None:
            fused = norm_linear(x, weight, bias, norm.eps)
            if fused is not None:
                return fused
        scale = torch.rsqrt(norm.mean_square).to(x.device)
        if self.columns is None or x.dtype is torch.float16:
            y = product(x, weight).to(scale.dtype) * scale
            return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)
        y = functional.linear(x, weight, bias)
        if not self.columns:
            return y
        parts, done = [], 0
        for first, last in [*self.columns, (weight.shape[0], weight.shape[0])]:
            offset = None if bias is None else bias[first:last].to(scale.dtype)
            parts.append(y[..., done:first])
            part = y[..., first:last].to(scale.dtype)
            part = part * scale if offset is None else (part - offset) * scale + offset
            parts.append(part.to(x.dtype))
            done = last
        return torch.cat(parts, dim=-1)


class AfterLinear(_After, nn.Linear):
    """A linear layer that reads a deferred norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(x, self.weight, self.bias)


class AfterConv1D(_After, Conv1D):
    """GPT-2's linear layer, weight [in, out], that reads a deferred norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(x, self.weight.t(), self.bias)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x·weightᵀ of an x that no norm has scaled: what overflows float16 is computed in float32."""
    if x.dtype is not torch.float16:
        return functional.linear(x, weight)
    if x.is_cuda and not torch.is_grad_enabled():
        y: torch.Tensor = torch.mm(x.flatten(0, -2), weight.t(), out_dtype=torch.float32)
        return y.view(*x.shape[:-1], -1)
    return functional.linear(x.float(), weight.float())


def _centre_output(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output - output.mean(-1, keepdim=True)


def _centre_input(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    given = kwargs.get("inputs_embeds")
    if given is not None:
        kwargs = {**kwargs, "inputs_embeds": given - given.mean(-1, keepdim=True)}
    return args, kwargs


def install(model: Any, options: dict[str, Any]) -> None:
    """Exchange modules of a freshly built stock model, before its weights are loaded.

    Args:
        options: rows under `norms` (become `Flash`), `deferred` (`Deferred`), `linears` (apply the scale of
            the norm in `norm`), `corrected` (`Corrected`); `centred` names the embeddings whose rows are
            centred when they are looked up, as their matrix is also the output head; `inputs_embeds` says
            that embeddings which the caller brings are centred too.
    """
    for row in rows(options.get("norms", [])):
        model.set_submodule(row["at"], Flash(model.get_submodule(row["at"]), row))
    for row in rows(options.get("deferred", [])):
        model.set_submodule(row["at"], Deferred(model.get_submodule(row["at"]), row))
    for row in rows(options.get("corrected", [])):
        before = model.get_submodule(row["norm"])
        model.set_submodule(row["at"], Corrected(model.get_submodule(row["at"]), row, before))
    for row in rows(options.get("linears", [])):
        linear = model.get_submodule(row["at"])
        linear.__class__ = AfterConv1D if isinstance(linear, Conv1D) else AfterLinear
        linear.before = (model.get_submodule(row["norm"]),)
        linear.columns = row.get("columns")
    for row in rows(options.get("centred", [])):
        model.get_submodule(row["at"]).register_forward_hook(_centre_output)
    if options.get("inputs_embeds"):
        for owner in {id(m): m for m in (model, model.base_model)}.values():
            owner.register_forward_pre_hook(_centre_input, with_kwargs=True)


def rows(compact: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per module: `a.[0-2].b` stands for a.0.b, a.1.b and a.2.b in every text of its row."""
    for row in compact:
        ranges = re.search(r"\[([\d,-]+)\]", row["at"])
        if ranges is None:
            yield row
            continue
        for span in ranges[1].split(","):
            first, _, last = span.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield {
                    key: value.replace(ranges[0], str(number)) if isinstance(value, str) else value
                    for key, value in row.items()
                }
