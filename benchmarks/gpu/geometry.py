"""Models of real sizes with random weights on the card: the source, and what a conversion makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tricks import Checkpoint, Plan, make_plan, parse_trick
from tricks.checkpoint import TensorInfo
from tricks.families import classes
from tricks.layout import saved_shapes
from tricks.model import Blueprint, build
from tricks.ship import code_fields, shipped_code
from tricks.shipped.modeling_skipless import SkiplessConfig, SkiplessForCausalLM

LLAMA_7B = (
    "llama",
    {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
)
PHI3_MINI = (
    "phi3",
    {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "sliding_window": None,
        "pad_token_id": 0,
    },
)
GEMMA_7B = (
    "gemma",
    {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
)
"""CodeGemma's too: of the decoders with rotary embeddings the one that MatShrink takes most from."""
_FEW = {"slim": 2, "matshrink": 2, "precompute": 2}
"""Layers that a trick is planned on where all of them would take minutes; the others are like these."""


def headers(model_type: str, fields: dict[str, Any]) -> Checkpoint:
    """The headers of a bfloat16 checkpoint of this configuration, as if every tensor were in one file."""
    config = AutoConfig.for_model(model_type, **fields)
    architecture = next(iter(classes(model_type)))
    tensors, place = {}, 0
    for name, shape in saved_shapes(build(Blueprint(architecture, config), "meta", torch.float32)).items():
        size = 2 * shape.numel()
        tensors[name] = TensorInfo(name, "model.safetensors", "BF16", tuple(shape), place, place + size)
        place += size
    stored = {**config.to_dict(), "architectures": [architecture]}
    return Checkpoint(model_type, stored, tensors, ("model.safetensors",))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def source(model_type: str, fields: dict[str, Any]) -> PreTrainedModel:
    """The stock model in bfloat16 on the card."""
    return _made(AutoConfig.for_model(model_type, **fields))


def converted(model_type: str, fields: dict[str, Any], trick: str) -> tuple[PreTrainedModel, Plan]:
    """The converted model in bfloat16 on the card, with random weights, and its plan."""
    checkpoint, plan = headers(model_type, fields), planned(model_type, fields, trick)
    with TemporaryDirectory() as folder:
        for name, text in shipped_code(plan, checkpoint.config).items():
            (Path(folder) / name).write_text(text)
        config = {**checkpoint.config, **plan.config, **code_fields(plan, checkpoint.config)}
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        return _made(AutoConfig.from_pretrained(folder, trust_remote_code=True)), plan


def planned(model_type: str, fields: dict[str, Any], trick: str) -> Plan:
    """The plan of a model of these sizes, made in seconds.

    Raises:
        ValueError: the trick fits nowhere.
    """
    recipe, depth = [parse_trick(trick)], fields["num_hidden_layers"]
    few = min(depth, _FEW.get(recipe[0].name, depth))
    plan = make_plan(headers(model_type, {**fields, "num_hidden_layers": few}), recipe)
    if not plan.fits:
        raise ValueError(f"{trick} does not fit: {plan.places[0].detail}")
    return replace(plan, config=_deeper(plan.config, depth)) if few < depth else plan


def skipless(absorbed: str | None, fields: dict[str, Any]) -> PreTrainedModel:
    """A skipless transformer of these sizes in bfloat16, whole or with `absorbed` and P merged away."""

    class Random(SkiplessForCausalLM):
        def _init_weights(self, module: Any) -> None:  # orthogonal ones take minutes at these sizes
            pass

    with torch.device(DEVICE):
        model: PreTrainedModel = Random(SkiplessConfig(absorbed=absorbed, **fields)).to(torch.bfloat16)
    return _filled(model)


def _deeper(config: dict[str, Any], depth: int) -> dict[str, Any]:
    """The config of a plan for a few equal layers as one for `depth` like them."""
    parts = {name: dict(options) for name, options in config["tricksmith"].items()}
    if "slim" in parts:
        # Without weights there is nothing to fit, and so no feedback of rounding errors; conversions have it.
        first = {**parts["slim"]["layers"][0], "feedback": True}
        parts["slim"]["layers"] = [
            {**first, "module": first["module"].replace(".0.", f".{n}."), "index": n} for n in range(depth)
        ]
    if "matshrink" in parts:
        linears = [one for one in parts["matshrink"]["linears"] if ".0." in one["path"]]
        parts["matshrink"]["linears"] = [
            {**one, "path": one["path"].replace(".0.", f".{n}.")} for n in range(depth) for one in linears
        ]
    return {**config, "tricksmith": parts}


def _made(config: Any) -> PreTrainedModel:
    config.dtype = "bfloat16"
    with torch.device(DEVICE):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=True, attn_implementation="sdpa"
        )
    return _filled(model)


def _filled(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    for name, buffer in model.named_buffers():
        if name.endswith(".order"):
            buffer.copy_(torch.randperm(len(buffer)))
        elif buffer.dtype == torch.int16:
            buffer.random_(-1000, 1000)
        elif name.rpartition(".")[2].startswith("index_"):  # the channels of an identity, all different
            inputs = model.get_submodule(name.rpartition(".")[0]).in_features
            drawn = torch.rand(len(buffer), inputs, device=buffer.device).argsort(-1)  # type: ignore[call-overload]
            buffer.copy_(drawn[:, : buffer.shape[1]])
        elif name.endswith("scales"):
            buffer.fill_(1e-3)
    for name, parameter in model.named_parameters():
        if name.endswith("_scales"):
            parameter.data.fill_(1e-3)
    return model.eval().requires_grad_(False)
