"""Which model classes are handled: those of transformers that read text, whatever else they read with it."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto import modeling_auto as auto

from tricks.shipped.modeling_skipless import SkiplessForCausalLM

_AUTO: dict[str, dict[str, Any]] = {
    "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForSequenceClassification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModel": auto.MODEL_MAPPING_NAMES,
}


def _names(entry: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    auto_name: {model_type: _names(entry) for model_type, entry in table.items()}
    for auto_name, table in _AUTO.items()
}
"""transformers' auto classes -> model type -> names of the classes that they choose."""

GENERATIVE = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
)
"""Auto classes whose models return the logits of tokens and nothing that others compute with."""


def classes(model_type: str) -> dict[str, str]:
    """Class name -> auto class, for every class of a model type; the first is its usual one."""
    found: dict[str, str] = {}
    for auto_name, table in TABLES.items():
        for name in table.get(model_type, ()):
            found.setdefault(name, auto_name)
    if not found and model_type in CONFIG_MAPPING:
        # A part of a larger model that was saved by itself: its class is listed under the larger one's type.
        config_class = CONFIG_MAPPING[model_type]
        for auto_name, table in TABLES.items():
            for name in {name for names in table.values() for name in names}:
                if name.startswith(_stem(config_class)) and architecture(name).config_class is config_class:
                    found.setdefault(name, auto_name)
    return found


def _stem(config_class: type) -> str:
    """The first letters of a class name, which a model's classes share: it spares importing all of them."""
    return config_class.__name__[:3]


def reads_text(name: str) -> bool:
    """Whether the class `name` takes token ids: as its input, or as what its decoder has said so far."""
    accepted = inspect.signature(architecture(name).forward).parameters
    return "input_ids" in accepted or "decoder_input_ids" in accepted


def auto_class(name: str) -> str:
    """The auto class that chooses the class `name`."""
    return next(a for a, table in TABLES.items() for names in table.values() if name in names)


def architecture(name: str) -> Any:
    """The class `name` of transformers, or Tricksmith's own."""
    return OWN[name] if name in OWN else getattr(transformers, name)


OWN: dict[str, Any] = {"SkiplessForCausalLM": SkiplessForCausalLM}
"""Model classes that ship with Tricksmith: known here as those of transformers are, and shipped as code."""


def own_part(name: str) -> tuple[str, ...]:
    """The shipped module of one of Tricksmith's own classes, as a plan's part; nothing for others."""
    return (OWN[name].__module__.rpartition("modeling_")[2],) if name in OWN else ()


for _class in OWN.values():
    AutoConfig.register(_class.config_class.model_type, _class.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_class.config_class, _class, exist_ok=True)
    TABLES["AutoModelForCausalLM"][_class.config_class.model_type] = (_class.__name__,)
