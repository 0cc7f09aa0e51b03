"""`make bench-plan`: how long a plan takes at full published size, from config and headers alone.

Each type is planned at transformers' own default configuration, or larger, as from a Hub model: no weights
exist. A plan of another model goes first, so that imports and transformers' tables are not counted; each row
is the median of three.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tricks import Checkpoint, Trick, make_plan
from tricks.checkpoint import TensorInfo
from tricks.families import classes
from tricks.layout import saved_shapes
from tricks.model import Blueprint, build

RESULTS = Path(__file__).parent / "results/planning.json"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_hidden_layers": 400}),
    ("gemma3", {}),
    ("qwen3_moe", {"num_experts": 256, "num_hidden_layers": 48}),
    ("deepseek_v3", {}),
    ("longcat_flash", {}),
    ("mamba2", {}),
    ("stablelm", {}),
    ("t5", {}),
    ("whisper", {}),
]


def headers_of(model_type: str, fields: dict[str, Any]) -> Checkpoint:
    """The headers that a checkpoint of this configuration has, as if every tensor were in one file."""
    config = AutoConfig.for_model(model_type, **fields)
    architecture = next(iter(classes(model_type)))
    tensors, place = {}, 0
    for name, shape in saved_shapes(build(Blueprint(architecture, config), "meta", torch.float32)).items():
        size = 4 * shape.numel()
        tensors[name] = TensorInfo(name, "model.safetensors", "F32", tuple(shape), place, place + size)
        place += size
    stored = {**config.to_dict(), "architectures": [architecture]}
    return Checkpoint(model_type, stored, tensors, ("model.safetensors",))


def main() -> None:
    """Time every case and write the results."""
    make_plan(headers_of("gpt2", {}), [Trick("flashnorm")])
    rows = []
    for model_type, fields in CASES:
        checkpoint = headers_of(model_type, fields)
        seconds = []
        for number in range(3):
            # Under a name of its own: what was read last is kept.
            fresh = replace(checkpoint, name=f"{model_type}-{number}")
            begin = time.perf_counter()
            plan = make_plan(fresh, [Trick("flashnorm")])
            seconds.append(time.perf_counter() - begin)
        folded = sum(place.fits for place in plan.places)
        row = {
            "type": model_type,
            "changed": fields,
            "tensors": len(checkpoint.tensors),
            "norms": len(plan.places),
            "folded": folded,
            "seconds": round(statistics.median(seconds), 2),
        }
        rows.append(row)
        print(
            f"{model_type} {fields or ''}: {row['seconds']} s, {folded} of {len(plan.places)} norms",
            flush=True,
        )
    RESULTS.write_text(json.dumps({"command": "make bench-plan", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
