"""Checkpoints from strangers: every damage is one clear line, and valid ones are read as safetensors does."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from tricks import BadInput, read_checkpoint
from tricks.checkpoint import parse_header, weight_map


def write(folder: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, content in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def index(folder: Path, entries: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": entries}))


GOOD = save({"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)})


def refused(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "m", model=GOOD))
    assert checkpoint.tensors["a"].shape == (3, 2)
    assert checkpoint.tensors["b"].dtype == "BF16"
    assert checkpoint.weight_bytes == 32


def test_no_folder(tmp_path: Path) -> None:
    assert "is no folder" in refused(tmp_path / "nothing")


def test_no_config(tmp_path: Path) -> None:
    assert "has no config.json" in refused(tmp_path)


def test_pickles_only(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "only pytorch_model.bin" in refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 40, len(GOOD) - 1])
def test_truncated_shard(keep: int, tmp_path: Path) -> None:
    assert "cut short" in refused(write(tmp_path / "m", model=GOOD[:keep]))


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    assert "cut short" in refused(write(tmp_path / "m", model=struct.pack("<Q", 1 << 60) + b"{}"))


def test_index_names_a_missing_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", one=GOOD)
    index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    assert "two.safetensors, which is missing" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "a\\b.safetensors"]
)
def test_index_names_a_file_outside_the_folder(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", one=GOOD)
    index(folder, {"a": "one.safetensors", "b": name})
    assert "outside the model's folder" in refused(folder)


def test_index_puts_a_tensor_in_the_wrong_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", one=save({"a": torch.ones(1)}), two=save({"b": torch.ones(1)}))
    index(folder, {"a": "two.safetensors", "b": "one.safetensors"})
    assert "but it is not" in refused(folder)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", one=GOOD, two=save({"a": torch.ones(1), "c": torch.ones(1)}))
    index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    assert "'a' stands in both" in refused(folder)


def test_a_tensor_named_twice_in_the_index(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", one=GOOD)
    text = '{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text)
    assert "'a' is named twice" in refused(folder)


HEADERS = [
    b"[]",
    b"{",
    b'{"a": 1}',
    b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
    b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
]


@pytest.mark.parametrize("raw", HEADERS)
def test_headers_that_lie(raw: bytes) -> None:
    with pytest.raises(BadInput):
        parse_header(raw, None, "x.safetensors", "m")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_no_header_crashes_the_parser(raw: bytes) -> None:
    with suppress(BadInput):
        parse_header(raw, None, "x.safetensors", "m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON | st.just("F32")), JSON)
def test_no_entry_or_index_crashes(entry: dict[str, Any], entries: Any) -> None:
    for attempt in (
        lambda: parse_header(json.dumps({"a": entry}).encode(), 0, "x.safetensors", "m"),
        lambda: weight_map({"weight_map": entries}, "m"),
    ):
        with suppress(BadInput):
            attempt()


def test_what_save_file_writes_is_always_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    save_file({"x": torch.zeros(0, 3), "y": torch.tensor(1.0)}, folder / "model.safetensors")
    assert set(read_checkpoint(folder).tensors) == {"x", "y"}
