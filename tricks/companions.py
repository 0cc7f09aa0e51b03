"""Which files beside the weights belong to a model: configuration, tokenizer, templates, licence texts.

A list of what is wanted, so that notes, logs, code, pickles and other formats' weights never travel along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_WANTED = re.compile(
    r"[^/]*\.json|tokenizer\.[^/]*|[^/]*\.(?:model|spm|tiktoken)|vocab\.[^/]*|merges\.txt|bpe\.codes|[^/]*\.jinja"
    r"|chat_template[^/]*|additional_chat_templates/[^/]*\.jinja|(?:licen[cs]e|copying|notice|use_policy)[^/]*",
    re.IGNORECASE,
)
# Never: code, pickles, other weight formats, other formats' indexes, and what Tricksmith itself writes.
_UNWANTED = re.compile(
    r".*\.(?:py|pyc|so|sh|bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|npz|safetensors|zip|gz|tar)"
    r"|.*\.index\.json|conversion\.json|evidence\.json",
    re.IGNORECASE | re.DOTALL,
)
_FOLDERS = ("*", "additional_chat_templates/*")


def companions(names: Iterable[str]) -> list[str]:
    """The names (relative, forward slashes) that travel with the weights, sorted."""
    return sorted({name for name in names if _WANTED.fullmatch(name) and not _UNWANTED.fullmatch(name)})


def files_of(folder: Path) -> list[str]:
    """Every file of a local folder that could belong to a model, relative to it."""
    paths = (path for pattern in _FOLDERS for path in folder.glob(pattern) if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)
