"""What the converted folder holds, without running it: weights against the plan, settings as the source's.

No text shows everything: not the row of a token that never comes up, nor what a context longer than the
text's windows would meet, nor where a chat ends. All of that stands in the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from evals.models import read_config
from evals.precision import dtype_name, storage_dtype
from evals.rows import rows_out_of_line, unread_weights
from tricks import (
    BadInput,
    Plan,
    Report,
    carried_out,
    expected_config,
    make_plan,
    parse_trick,
    read_checkpoint,
)

# Entries that say who wrote a file, or how it is run here; none changes the model.
_ASIDE = re.compile(r"(^|\.)(transformers_version|_\w+|torch_dtype|architectures|auto_map)$")
# What a text of a few thousand tokens in short windows does not show.
_UNSEEN = re.compile(
    r"rope|sliding|window|position|context|layer_types|_token_id|tie_word|cache", re.IGNORECASE
)
# Parts of a model of text and pictures or sound that a text alone never reaches.
_UNREAD = re.compile(r"vision|visual|image|audio|speech|multi_modal", re.IGNORECASE)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_SETTINGS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
MOST_NAMED = 5


@dataclass(frozen=True)
class Weights:
    """The converted weights against the plan, computed again (see `tricks.rechecking`).

    `values` numbers in `tensors` tensors were looked at, `exact` are equal to the plan's rounded once, and
    those of `wrong` tensors (named with what is wrong) are not the plan's; `left` tensors follow from
    activations and were not computed again. `proof` is the plan's own, in float64 on a small instance.
    """

    tensors: int
    values: int
    exact: int
    left: int
    wrong: tuple[str, ...]
    proof: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"wrong": list(self.wrong)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Weights:
        """The inverse of `to_json`."""
        return Weights(**{**data, "wrong": tuple(data["wrong"])})


@dataclass(frozen=True)
class Files:
    """What the two folders' files say: `reasons` why it is not the same model, `notes` on what is else."""

    weights: Weights | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def compare_files(
    source: Path,
    converted: Path,
    tricks: Sequence[str],
    plan: Plan | None,
    lossless: bool,
    report: Report,
) -> Files:
    """Hold the converted folder against its plan, and its settings against the source's.

    Args:
        tricks: the tricks that were applied; without any there is no plan to hold it against.
        plan: what was carried out, where the caller has it; otherwise it is made again.

    Raises:
        BadInput: one of the folders is no intact checkpoint.
    """
    notes: list[str] = []
    settled = plan is not None
    if plan is None and tricks:
        try:
            plan = make_plan(read_checkpoint(source), [parse_trick(text) for text in tricks])
        except BadInput as error:
            notes.append(f"the weights were not held against a plan: {error}")
    weights, reasons = None, []
    if plan is not None:
        found = carried_out(plan, source, converted, report)
        weights = Weights(
            found.tensors, found.values, found.exact, found.left, found.wrong[:MOST_NAMED], plan.proof
        )
        more = len(found.wrong) - MOST_NAMED
        reasons += [f"not what the plan makes of the source: {words}" for words in weights.wrong]
        reasons += [f"and {more} more tensors"] if more > 0 else []
    elif lossless:
        config = read_config(source)
        size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0
        reasons += rows_out_of_line(source, converted, int(size))
        reasons += unread_weights(source, converted, _UNREAD)
    words, others = _settings(source, converted, plan, settled)
    return Files(weights, (*reasons, *words), (*notes, *others))


def _settings(source: Path, converted: Path, plan: Plan | None, settled: bool) -> tuple[list[str], list[str]]:
    before, after = read_config(source), read_config(converted)
    expected = before if plan is None else expected_config(plan, before)
    names = _differing(_effective(expected), _effective(after))
    if plan is not None and "slim" in plan.parts and not settled:
        names = [name for name in names if not name.startswith("tricksmith")]
    seen = [] if plan is not None else [name for name in names if not _UNSEEN.search(name)]
    reasons, notes = [], []
    if unseen := [name for name in names if name not in seen]:
        reasons.append(f"config.json differs from the source's in what a text cannot show: {_few(unseen)}")
    if seen:
        notes.append(f"config.json differs from the source's in {_few(seen)}")
    if plan is None or "architectures" in expected:
        named = after.get("architectures")
        if named is not None and named != expected.get("architectures", named) and not after.get("auto_map"):
            reasons.append(f"config.json names the architecture {named}, not {expected['architectures']}")
    reasons += _strangers(source, converted, own=bool(after.get("auto_map")))
    if (lie := _dtype_lie(source, before, converted, after)) is not None:
        reasons.append(lie)
    if ends := _differing(_generation(source, before), _generation(converted, after)):
        reasons.append(f"generation_config.json differs from the source's in {_few(ends)}")
    for name in _SETTINGS:
        if (source / name).is_file() and _object(source / name) != _object(converted / name):
            reasons.append(f"{name} is not the source's")
    for template in sorted(source.glob("additional_chat_templates/*.jinja")):
        copy = converted / "additional_chat_templates" / template.name
        if not copy.is_file() or copy.read_bytes() != template.read_bytes():
            reasons.append(f"the chat template {template.name} is not the source's")
    return reasons, notes


def _strangers(source: Path, converted: Path, own: bool) -> list[str]:
    """Files that a library may load instead of, or on top of, what was compared, and that nobody wrote here.

    `own`: the model runs code of its own, which was looked at.
    """
    index = _object(converted / "model.safetensors.index.json")
    listed = set(index["weight_map"].values()) if isinstance(index, dict) and "weight_map" in index else None
    found = []
    for path in sorted(converted.rglob("*")):
        name = path.relative_to(converted).as_posix()
        stray = listed is not None and path.suffix == ".safetensors" and name not in listed
        code = path.suffix == ".py" and not (own and "/" not in name)
        kind = stray or code or path.suffix in _PICKLES or name.startswith("adapter_")
        if kind and path.is_file() and not name.startswith(".") and not _alike(path, source / name):
            found.append(name)
    return [f"holds {_few(found)}, which the source does not"] if found else []


def _alike(file: Path, other: Path) -> bool:
    return other.is_file() and file.read_bytes() == other.read_bytes()


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries as transformers fills them in, flat (`rope_parameters.rope_theta`)."""
    try:
        plain = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict()
    except Exception:  # noqa: BLE001 (a type that it does not know, or entries that it does not take)
        plain = dict(config)
    return {
        name: value for name, value in _flat(plain).items() if not _ASIDE.search(name) and name != "dtype"
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= _flat(entry, f"{prefix}{name}.")
        elif entry is not None:
            flat[f"{prefix}{name}"] = entry
    return flat


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _dtype_lie(
    source: Path, before: Mapping[str, Any], converted: Path, after: Mapping[str, Any]
) -> str | None:
    """What is wrong where `config.json` names another type than the weights are stored in, as the source's
    does not; whoever loads the model as it says gets the other one."""
    said, stored = _dtype(after), dtype_name(storage_dtype(converted))
    if said in (None, stored) or (said == _dtype(before) != dtype_name(storage_dtype(source))):
        return None
    return f"config.json says {said}, but the weights are stored in {stored}"


def _dtype(config: Mapping[str, Any]) -> str | None:
    named = config.get("dtype") or config.get("torch_dtype")
    return None if named is None else str(named).removeprefix("torch.")


def _generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the model generates unasked: its file, or what transformers derives from `config.json`."""
    written = _object(folder / "generation_config.json")
    if not isinstance(written, dict):
        text = config.get("text_config")
        inner = text if isinstance(text, dict) else {}
        written = {name: config.get(name, inner.get(name)) for name in _TOKENS}
    return {name: value for name, value in _flat(written).items() if not _ASIDE.search(name)}


def _object(file: Path) -> Any:
    """The file's JSON; None where there is none, its bytes where it is no JSON."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    try:
        return json.loads(data)
    except ValueError:
        return data


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"
