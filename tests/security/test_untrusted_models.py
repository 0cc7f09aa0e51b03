"""Models that attack: paths, headers, pickles, code. Nothing but a refusal may come of it.

Where a threat is another room's, its test is there: what a child process may see in
tests/workers/test_process, HTML and Markdown from outside in tests/ui/test_pages, webhooks in
tests/service/test_webhook, floods and large requests in tests/ui/test_door. Archives are no threat: nothing
here reads one.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from service.evidence_request import EvidenceRequest
from tests.security.headers import HEADERS, safetensors_file, try_model
from tricks import BadInput, companions, make_plan, parse_trick, read_checkpoint
from tricks.checkpoint import parse_header

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def write(folder: Path, weights: bytes, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "a/../../outside.safetensors",
        "..\\outside.safetensors",
        "./../outside.safetensors",
        "x\0.safetensors",
        "a" * 300 + ".safetensors",
        "\ud800.safetensors",
    ],
)
def test_an_index_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "outside.safetensors").write_bytes(save({"a": torch.ones(1)}))
    index = {"metadata": {}, "weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput) as refused:
        read_checkpoint(folder)
    assert len(str(refused.value).splitlines()) == 1


def test_what_travels_along_is_no_code_and_no_archive() -> None:
    names = ["setup.py", "modeling_evil.py", "weights.tar", "../config.json", "/etc/passwd", "x.zip", "a.pkl"]
    assert [name for name in companions(names) if name in names] == []


@pytest.mark.parametrize("length", [0, 7, 2**31, 2**63 - 1, 2**64 - 1])
def test_a_giant_header_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = write(tmp_path / "m", struct.pack("<Q", length) + b"{}")
    with pytest.raises(BadInput):
        read_checkpoint(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize(
    "raw", [b"[" * 200_000, b'{"a":' * 100_000, b'{"a":{"dtype":"F32","shape":[' + b"9" * 9999]
)
def test_a_header_that_overruns_its_parser_is_refused(tmp_path: Path, raw: bytes) -> None:
    folder = write(tmp_path / "m", struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(BadInput):
        read_checkpoint(folder)


@pytest.mark.parametrize("shape", [[2**63 - 1] * 60_000, [int("9" * 4000)] * 300, [0] * 100_000])
def test_a_shape_that_takes_days_to_multiply_is_refused_at_once(shape: list[int]) -> None:
    raw = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    started = time.process_time()
    with pytest.raises(BadInput, match="impossible shape"):
        parse_header(raw, None, "x.safetensors", "m")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "recipe",
    [
        "tasks: [&a [x, x], &b [*a, *a], *b]",
        "tokens: " + "9" * 19_000,
        "tasks: " + "[" * 9_000,
        "tokens: 2026-99-99",
        "!!python/object/apply:os.system [touch /tmp/x]",
    ],
)
def test_a_visitors_recipe_is_read_quickly_or_refused(recipe: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInput) as refused:
        EvidenceRequest(recipe).settled()
    assert len(str(refused.value)) < 500
    assert time.process_time() - started < 5


def test_a_nested_config_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", save({"a": torch.ones(1)}))
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(BadInput):
        read_checkpoint(folder)


@settings(max_examples=400, deadline=None)
@given(header=HEADERS, data=st.binary(max_size=64), lie=st.integers(-9, 9))
def test_no_header_gets_further_than_a_refusal(header: Any, data: bytes, lie: int) -> None:
    """Overlapping and out-of-range offsets, wrong sizes and dtypes, and whatever else JSON can say."""
    with suppress(BadInput):
        try_model(safetensors_file(json.dumps(header).encode(), data, lie))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damaged_file_gets_further_than_a_refusal(data: st.DataObject) -> None:
    good = bytearray(save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    with suppress(BadInput):
        try_model(bytes(good[: data.draw(st.integers(0, len(good)))]))


class Bomb:
    """Unpickled, it writes the file `BOMB_MARK` names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['BOMB_MARK']}",)


def test_a_pickle_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "exploded"
    monkeypatch.setenv("BOMB_MARK", str(mark))
    bomb = pickle.dumps(Bomb())
    as_bin = write(tmp_path / "bin", b"")
    (as_bin / "model.safetensors").unlink()
    (as_bin / "pytorch_model.bin").write_bytes(bomb)
    for folder in (as_bin, write(tmp_path / "disguised", bomb)):
        with pytest.raises(BadInput):
            make_plan(read_checkpoint(folder), [parse_trick("flashnorm")])
    assert not mark.exists()


def test_a_models_own_code_never_runs(small_llama: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    for path in small_llama.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
    }
    config["trust_remote_code"] = True
    code = f"open({str(mark)!r}, 'w')\nclass EvilConfig: ...\nclass EvilModel: ...\n"
    for name in ("evil.py", "torch.py", "sitecustomize.py", "__init__.py"):
        (folder / name).write_text(code)
    for model_type in ("llama", "evil"):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        with suppress(BadInput):
            make_plan(read_checkpoint(folder), [parse_trick("flashnorm")])
    assert not mark.exists()
