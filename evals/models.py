"""Loading the two models, one at a time."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from evals.memory import MemoryLimit, placement
from tricks import BadInput
from tricks.families import auto_class, classes


class Kind(StrEnum):
    """What a model reads and says; the value names transformers' auto class for it."""

    CAUSAL = "AutoModelForCausalLM"
    IMAGE_TEXT = "AutoModelForImageTextToText"  # read with text alone
    SEQ2SEQ = "AutoModelForSeq2SeqLM"
    SPEECH = "AutoModelForSpeechSeq2Seq"
    MASKED = "AutoModelForMaskedLM"
    SEQUENCE_CLASSES = "AutoModelForSequenceClassification"
    TOKEN_CLASSES = "AutoModelForTokenClassification"
    FEATURES = "AutoModel"

    @property
    def decoder_only(self) -> bool:
        """Whether one row of tokens goes in and the next token comes out."""
        return self in (Kind.CAUSAL, Kind.IMAGE_TEXT)

    @property
    def generative(self) -> bool:
        """Whether the model says one token after the other."""
        return self.decoder_only or self in (Kind.SEQ2SEQ, Kind.SPEECH)


@dataclass(frozen=True)
class Place:
    """Where a model runs: its dtype, its device, and how much memory it may take."""

    dtype: torch.dtype
    device: str
    memory: MemoryLimit


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, the device its inputs go to, and the parameters that its files did not hold.

    `offloaded` says that some weights stay in their files until their layer runs.
    """

    model: PreTrainedModel
    kind: Kind
    device: torch.device
    missing: tuple[str, ...]
    offloaded: bool


def kind_of(config: dict[str, Any]) -> Kind:
    """What the config's architecture is; a causal LM where transformers does not know it."""
    for name in config.get("architectures") or list(classes(str(config.get("model_type")))):
        try:
            return Kind(auto_class(str(name)))
        except StopIteration:
            continue
    return Kind.CAUSAL


@contextmanager
def loaded(folder: Path, kind: Kind, place: Place, own_code: bool = False) -> Iterator[Loaded]:
    """The folder's language model, dropped from memory at the end.

    Args:
        own_code: run the modelling files in the folder; only for what `runs_own_code` allows.

    Raises:
        BadInput: the folder does not load as a model of this kind, or not within the memory allowed.
    """
    with tempfile.TemporaryDirectory(prefix="tricksmith-offload-") as offload:
        layout = placement(folder, place.dtype, place.device, place.memory, offload)
        try:
            with quiet():
                both: Any = getattr(transformers, kind.value).from_pretrained(
                    str(folder),
                    dtype=place.dtype,
                    trust_remote_code=own_code,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    **layout,
                )
        except Exception as error:
            # Whatever transformers or the model's own code raise, what the user can do is give another
            # folder.
            raise BadInput(
                f"{folder} does not load with {kind.value} of transformers {transformers.__version__}: "
                f"{first_line(error)}"
            ) from error
        model = both[0]
        missing_keys = both[1]["missing_keys"]
        del both
        parameters = {name for name, _ in model.named_parameters()}
        missing = tuple(sorted(parameters.intersection(missing_keys)))
        try:
            if not layout:
                model.to(place.device)
            model.eval()
            if place.dtype == torch.float64:
                _loop_over_experts(model)
            yield Loaded(model, kind, _entry(model, place.device), missing, bool(layout))
        finally:
            del model
            gc.collect()
            if place.device.startswith("cuda"):
                torch.cuda.empty_cache()


def _loop_over_experts(model: PreTrainedModel) -> None:
    """The grouped products that mixtures of experts load with know no float64; one expert at a time does."""
    try:
        model.set_experts_implementation("eager")
    except (AttributeError, ValueError):
        return  # a class without that switch runs as it is


def _entry(model: PreTrainedModel, device: str) -> torch.device:
    """Where accelerate runs a spread model's first layer, or `device`."""
    spread: dict[str, Any] = getattr(model, "hf_device_map", {})
    on_gpu = [place for place in spread.values() if place not in ("cpu", "disk")]
    if spread and not on_gpu:
        return torch.device("cpu")
    return torch.device(on_gpu[0]) if on_gpu else torch.device(device)


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


def context_length(model: PreTrainedModel) -> int | None:
    """The longest input the model's positions reach; None where its config does not say."""
    config = model.config.get_text_config(decoder=True)
    keys = (
        "max_target_positions",
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "n_ctx",
    )
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
