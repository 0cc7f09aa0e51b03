"""Safetensors files that lie, for hypothesis (test_untrusted_models) and for atheris (fuzz_headers)."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from tricks import read_checkpoint

_NUMBERS = st.integers(-(2**65), 2**65) | st.integers(-2, 40) | st.floats() | st.booleans() | st.none()
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL", "F8_E4M3", "F99", ""]) | _JSON,
        "shape": st.lists(_NUMBERS, max_size=4) | _JSON,
        "data_offsets": st.lists(_NUMBERS, min_size=2, max_size=2) | _JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=12), _TENSOR | _JSON, max_size=4) | _JSON


def safetensors_file(header: bytes, data: bytes, lie: int = 0) -> bytes:
    """A file whose length field is wrong by `lie`."""
    return struct.pack("<Q", max(0, len(header) + lie)) + header + data


def try_model(weights: bytes) -> None:
    """Read a model with these weights.

    Raises:
        BadInput: as it should.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "model.safetensors").write_bytes(weights)
        read_checkpoint(folder)
