"""From a config to the model's own modelling code: the class, built without weights or small and random."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.initialization import no_init_weights

from tricks.errors import BadInput
from tricks.families import architecture, classes, reads_text
from tricks.inputs import sample_inputs
from tricks.quiet import quiet
from tricks.wiring import Wiring, trace


@dataclass(frozen=True)
class Blueprint:
    """What it takes to build a model: the name of its class in transformers, and its configuration."""

    architecture: str
    config: PretrainedConfig


def read_config(config: dict[str, Any], name: str) -> Blueprint:
    """The class and configuration of a model, from the parsed `config.json`.

    Raises:
        BadInput: a converted model, remote code, an unknown architecture, no model that reads text, or a
            quantised checkpoint.
    """
    model_type = str(config.get("model_type"))
    if "tricksmith" in config:
        raise BadInput(
            f"{name} is a converted model with code of its own; convert its source with all tricks at once"
        )
    known = classes(model_type)
    if not known or model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise BadInput(
                f"{name} needs its own remote code ({model_type}), which is never run here; "
                "choose a model whose architecture ships with transformers"
            )
        raise BadInput(
            f"{name} is no language model that this transformers knows (model_type {model_type!r}); "
            "choose a text-generation model"
        )
    named = config.get("architectures") or list(known)[:1]
    chosen = next((entry for entry in named if entry in known), None)
    if chosen is None or not reads_text(chosen):
        usual = next((entry for entry in known if reads_text(entry)), None)
        instead = f" (for this architecture: {usual})" if usual else ""
        raise BadInput(f"{name} is a {named[0]}, no language model; choose a text-generation model{instead}")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise BadInput(
            f"{name} is quantised ({method}); convert the unquantised model and quantise the result"
        )
    try:
        with quiet():
            read = CONFIG_MAPPING[model_type].from_dict(_with_special_floats(copy.deepcopy(config)))
    except Exception as error:
        raise BadInput(f"{name}: config.json is not valid for {model_type}: {first_line(error)}") from error
    return Blueprint(chosen, read)


_SPECIAL_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def _with_special_floats(value: Any) -> Any:
    """JSON with the floats that it cannot hold put back; transformers writes {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if list(value) == ["__float__"]:
            return _SPECIAL_FLOATS.get(value["__float__"], value)
        return {key: _with_special_floats(entry) for key, entry in value.items()}
    return [_with_special_floats(entry) for entry in value] if isinstance(value, list) else value


def build(blueprint: Blueprint, device: str, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode, with transformers' own initialisation, eager everywhere.

    Raises:
        BadInput: the modelling class cannot be built from this config.
    """
    config = copy.deepcopy(blueprint.config)
    stock = architecture(blueprint.architecture)
    if not isinstance(config, stock.config_class):
        # A text model under a wrapper's configuration: its own is one of those inside.
        inside = [key for key, kind in config.sub_configs.items() if kind is stock.config_class]
        config = getattr(config, inside[0]) if inside else config
    try:
        empty = no_init_weights() if device == "meta" else nullcontext()
        with quiet(), torch.device(device), empty:
            model: Any = stock._from_config(config, dtype=dtype, attn_implementation="eager")
        model.tie_weights()  # a part of the initialisation that even an empty model needs
    except Exception as error:
        line = first_line(error)
        raise BadInput(f"{blueprint.architecture} cannot be built from this config: {line}") from error
    built: nn.Module = model.eval()
    return built


def read_wiring(model: nn.Module) -> Wiring:
    """Trace `model` (meta or real) on a few token ids.

    Raises:
        BadInput: its modelling code cannot be run without weights.
    """
    spread_experts(model)
    problem = "it takes no text"
    for inputs in sample_inputs(model):
        try:
            with quiet():
                return trace(model, inputs)
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
            problem = first_line(error)
    raise BadInput(
        f"{type(model).__name__} cannot be run without weights ({problem}), "
        "so its wiring is unknown; please report this architecture"
    )


def spread_experts(model: nn.Module) -> None:
    """Let mixture-of-experts layers compute all chosen experts as one batched product.

    The default dispatch loops over the experts that were hit, which depends on data that is not there.
    """
    if hasattr(model, "set_experts_implementation"):
        try:
            model.set_experts_implementation("batched_mm")  # type: ignore[operator]
        except Exception:  # noqa: BLE001 - no such switch on this model: it runs as it is
            return


def first_line(error: BaseException) -> str:
    """The first line of an error, for messages of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
