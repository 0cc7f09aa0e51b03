"""The kernels' repository for the Hub: its package loads from anywhere and decodes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tricks.hub_kernel import main, write


def test_the_package_loads_by_its_path_and_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write(tmp_path / "slim-decode")
    assert package == tmp_path / "slim-decode" / "build" / "torch-universal" / "slim_decode"
    spec = importlib.util.spec_from_file_location("slim_decode_1", package / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    q, k = torch.randn(1, 2, 16), torch.randn(1, 5, 32)
    lengths = torch.tensor([5], dtype=torch.int32)
    out = module.decode(q, k, None, lengths, None, scale=0.25)
    weights = torch.einsum("bhi,bshi->bhs", q, k.view(1, 5, 2, 16)).mul(0.25).softmax(-1)
    torch.testing.assert_close(out, weights @ k)


def test_a_folder_that_is_there_or_names_no_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "1.5"):
        assert main([str(folder)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
