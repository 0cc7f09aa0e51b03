"""From a config to the model's own modelling code: the class, built without weights or small and random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tricks.errors import BadInput
from tricks.quiet import quiet
from tricks.wiring import Wiring, trace


def read_config(config: dict[str, Any], name: str) -> PretrainedConfig:
    """The config object of a causal LM.

    Raises:
        BadInput: remote code, an unknown architecture, no causal LM, or a quantised checkpoint.
    """
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if "auto_map" in config:
            raise BadInput(
                f"{name} needs its own remote code ({model_type}), which is never run here; "
                "choose a model whose architecture ships with transformers"
            )
        raise BadInput(
            f"{name} is no causal language model that this transformers knows (model_type {model_type!r}); "
            "choose a text-generation model"
        )
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    classes = [names] if isinstance(names, str) else list(names)
    architectures = config.get("architectures") or classes
    if not set(architectures) & set(classes):
        raise BadInput(
            f"{name} is a {architectures[0]}, no causal language model; choose a text-generation model "
            f"(for this architecture: {classes[0]})"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise BadInput(
            f"{name} is quantised ({method}); convert the unquantised model and quantise the result"
        )
    try:
        fields = {key: value for key, value in config.items() if key != "model_type"}
        return AutoConfig.for_model(model_type, **copy.deepcopy(fields))
    except Exception as error:
        raise BadInput(f"{name}: config.json is not valid for {model_type}: {first_line(error)}") from error


def build(config: PretrainedConfig, device: str, dtype: torch.dtype) -> nn.Module:
    """The causal LM of `config` in eval mode, with transformers' own initialisation, eager everywhere.

    Raises:
        BadInput: the modelling class cannot be built from this config.
    """
    config = copy.deepcopy(config)
    try:
        with quiet(), torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="eager"
            )
    except Exception as error:
        line = first_line(error)
        raise BadInput(f"{config.model_type} cannot be built from this config: {line}") from error
    return model.eval()


def read_wiring(model: nn.Module) -> Wiring:
    """Trace `model` (meta or real) on a few token ids.

    Raises:
        BadInput: its modelling code cannot be run without weights.
    """
    device = next(model.parameters()).device
    # Sizes that no model dimension equals, so that no axis is taken for another.
    ids = torch.zeros((3, 7), dtype=torch.long, device=device)
    spread_experts(model)
    try:
        with quiet():
            return trace(model, input_ids=ids)
    except Exception as error:
        raise BadInput(
            f"{type(model).__name__} cannot be run without weights ({first_line(error)}), "
            "so its wiring is unknown; please report this architecture"
        ) from error


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
