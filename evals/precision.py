"""Floating-point types: what a checkpoint is stored in, and the wider type it is judged in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tricks import BadInput

STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


def storage_dtype(folder: Path) -> torch.dtype:
    """The floating-point type that most of the folder's weights are stored in.

    A float64 checkpoint counts as float32: nothing wider is left to judge it in, and nobody runs it wider.

    Raises:
        BadInput: no safetensors file, or one that cannot be read.
    """
    sizes: Counter[torch.dtype] = Counter()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder} holds no *.safetensors file; give the folder of a safetensors model")
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    part = tensors.get_slice(name)
                    if part.get_dtype() in STORED:
                        sizes[STORED[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file} cannot be read ({error}); fetch it again") from error
    if not sizes:
        raise BadInput(f"{folder} holds no floating-point weights; quantised checkpoints are not compared")
    dtype = sizes.most_common(1)[0][0]
    return torch.float32 if dtype == torch.float64 else dtype


def weight_count(folder: Path) -> int:
    """How many numbers the folder's safetensors files hold."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                total += torch.Size(tensors.get_slice(name).get_shape()).numel()
    return total


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
