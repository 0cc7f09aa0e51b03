"""Loading the two models, one at a time."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tricks import BadInput


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and the parameters that its files did not hold."""

    model: PreTrainedModel
    missing: tuple[str, ...]


@contextmanager
def loaded(folder: Path, dtype: torch.dtype, device: str, own_code: bool = False) -> Iterator[Loaded]:
    """The folder's causal LM in `dtype`, dropped from memory at the end.

    Args:
        own_code: run the modelling files in the folder; only for what Tricksmith wrote itself.

    Raises:
        BadInput: the folder does not load as a causal LM.
    """
    try:
        with quiet():
            both: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                trust_remote_code=own_code,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
            )
    except Exception as error:
        # Whatever transformers or the model's own code raise, what the user can do is give another folder.
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"{folder} does not load as a causal LM in transformers {transformers.__version__}: {first}"
        ) from error
    model = both[0]
    missing_keys = both[1]["missing_keys"]
    del both
    parameters = {name for name, _ in model.named_parameters()}
    missing = tuple(sorted(parameters.intersection(missing_keys)))
    try:
        yield Loaded(model.to(device).eval(), missing)
    finally:
        del model
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the user's terminal."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        BadInput: not a model folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder} holds no config.json; give the folder of a model") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'} cannot be read ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{folder / 'config.json'} is not a JSON object; fetch it again")
    if config.get("quantization_config"):
        raise BadInput(f"{folder} is quantised; compare the unquantised models")
    return config


def ships_own_code(folder: Path) -> bool:
    """Whether every Python file in the folder is a modelling file that our own `conversion.json` lists."""
    code = {file.name for file in folder.glob("*.py")}
    try:
        listed = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(code) and all(name.startswith("modeling_") and name in listed for name in code)


def context_length(model: PreTrainedModel) -> int | None:
    """The longest input the model's positions reach; None where its config does not say."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
