"""Modelling code for a converted model: stock transformers code with some of its parts exchanged.

A converted folder that needs code of its own gets the shipped modules it uses, byte for byte as they stand
in `tricks/shipped`, and `modeling_tricksmith.py`, which derives one class from the stock class and installs
them. Where the stock class would load the weights wrongly, the model type is renamed too: loading without
`trust_remote_code` is then an error and never a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from tricks.families import architecture, auto_class, own_part
from tricks.merged import merged
from tricks.plan import Plan

SHIPPED = Path(__file__).parent / "shipped"
MODULE = "modeling_tricksmith"

_HEAD = '''"""{architecture} as Tricksmith converted it: stock code with parts exchanged ({parts})."""

from {module} import {architecture} as Stock
{imports}

class {name}(Stock):
    """Load with `from_pretrained(..., trust_remote_code=True)`; `config.tricksmith` says what differs."""
{config_line}
    def __init__(self, config):
        options = config.tricksmith
        if not isinstance(config, Stock.config_class):
            config = config.get_text_config()  # a text model under a wrapper's configuration
        super().__init__(config)
{installs}
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """No: the tensors are laid out as the stock class's, and transformers maps them in the same way."""
        return False
{after}'''

_CONFIG = '''

class TricksmithConfig({config_class}):
    """The source's configuration under a name of its own, so that no stock class takes these weights."""

    model_type = "{model_type}"
'''

_MAPPING = """

if (mapping := get_checkpoint_conversion_mapping("{stock}")) is not None:
    register_checkpoint_conversion_mapping("{own}", mapping, overwrite=True)
"""


def shipped_code(plan: Plan, config: Mapping[str, Any]) -> dict[str, str]:
    """File name -> text of the modelling code that a plan's result needs.

    Args:
        config: the source's `config.json`.
    """
    stock = architecture(plan.architecture)
    config_class = CONFIG_MAPPING[config["model_type"]]
    own = own_part(plan.architecture)
    files: dict[str, str] = {}
    for part in plan.parts:
        _gather(f"modeling_{part}", files)
    imports = [
        f"from .modeling_{part} import install as install_{part}\n" for part in plan.parts if part not in own
    ]
    own_config = config_line = after = ""
    if not plan.stock_loads:
        derived, kept = class_name(plan), config["model_type"]
        imports.insert(0, f"from {_module(plan, config_class)} import {config_class.__name__}\n")
        imports.insert(
            0,
            "from transformers.conversion_mapping import (\n    get_checkpoint_conversion_mapping,\n"
            "    register_checkpoint_conversion_mapping,\n)\n",
        )
        own_config = _CONFIG.format(config_class=config_class.__name__, model_type=renamed(kept))
        config_line = "\n    config_class = TricksmithConfig\n"
        # transformers looks its mappings up by the class's name, then by the model type.
        after = _MAPPING.format(stock=plan.architecture, own=derived) + _MAPPING.format(
            stock=kept, own=renamed(kept)
        ).removeprefix("\n\n")
    files[f"{MODULE}.py"] = _HEAD.format(
        architecture=stock.__name__,
        module=_module(plan, stock),
        name=class_name(plan),
        parts=", ".join(plan.parts),
        imports="".join(imports) + own_config,
        config_line=config_line,
        installs="\n".join(
            f'        install_{part}(self, options["{part}"])' for part in plan.parts if part not in own
        ),
        after=after,
    )
    return files


def code_fields(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `config.json` that lead `from_pretrained` to the shipped class."""
    if not plan.parts:
        return {}
    auto_map = {auto_class(plan.architecture): f"{MODULE}.{class_name(plan)}"}
    for part in own_part(plan.architecture):
        auto_map["AutoConfig"] = f"modeling_{part}.{CONFIG_MAPPING[config['model_type']].__name__}"
    if plan.stock_loads:
        return {"auto_map": auto_map}
    auto_map["AutoConfig"] = f"{MODULE}.TricksmithConfig"
    return {
        "auto_map": auto_map,
        "model_type": renamed(config["model_type"]),
        "architectures": [class_name(plan)],
    }


def expected_config(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` that a plan makes of the source's."""
    return merged(config, plan.config, code_fields(plan, config))


def class_name(plan: Plan) -> str:
    """The name of the class that is derived from the stock class.

    It is the stock class's own where that loads the result too: what is saved again then still names a class
    that every runtime knows.
    """
    return plan.architecture if plan.stock_loads else f"Tricksmith{plan.architecture}"


def renamed(model_type: str) -> str:
    """The model type of a converted model that no stock class may load."""
    return f"tricksmith_{model_type}"


def _module(plan: Plan, stock: type) -> str:
    """Where shipped code imports a stock class from: transformers, or the module of our own beside it."""
    own = own_part(plan.architecture)
    return f".modeling_{own[0]}" if own else stock.__module__


def _gather(module: str, files: dict[str, str]) -> None:
    """Add a shipped module, and those that it imports from beside itself, to file name -> text."""
    text = (SHIPPED / f"{module}.py").read_text(encoding="utf-8")
    files[f"{module}.py"] = text
    for beside in re.findall(r"^from \.(\w+) import", text, re.MULTILINE):
        if f"{beside}.py" not in files:
            _gather(beside, files)
