"""Whose decode steps the slim kernel takes: the same logits as the torch path, and never a doubtful case."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from tricks import convert, make_plan, parse_trick, read_checkpoint

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = {"llama": MODELS / "tiny-llama", "gpt2": MODELS / "wirings" / "gpt2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, source in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp(name) / "out"
        plan = make_plan(read_checkpoint(source), [parse_trick("slim:mode=k,residual=64")])
        convert(plan, source, made[name])
    return made


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a slim model whose kernel is said to be there; counts the steps that it takes."""

    def load(folder: Path, kernel: bool = True) -> tuple[Any, list[int]]:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        memo = next(m.tricksmith_slim for m in model.modules() if hasattr(m, "tricksmith_slim"))
        module = sys.modules[type(memo.step).__module__]
        steps: list[int] = []
        decode = sys.modules[module.Shape.__module__].decode

        def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
            steps.append(1)
            out: torch.Tensor = decode(*args, **kwargs)
            return out

        monkeypatch.setattr(module, "available", lambda shape, device: kernel)
        monkeypatch.setattr(module, "decode", counted)
        return model.eval(), steps

    return load


@torch.no_grad()
def logits(model: Any, cache: Any, mask: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Of a prompt of 12, a piece of 3 and then single tokens, of 24 in all, two rows."""
    ids = torch.randint(5, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    pieces, out = [(0, 12), (12, 15), *((n, n + 1) for n in range(15, 24))], []
    for first, last in pieces:
        where = {} if positions is None else {"position_ids": positions[:, first:last]}
        given = {"attention_mask": mask[:, :last], "past_key_values": cache, **where}
        out.append(model(input_ids=ids[:, first:last], use_cache=True, **given).logits)
    return torch.cat(out, 1)[mask.bool()]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_the_kernels_step_gives_the_torch_paths_logits(
    name: str, padded: bool, static: bool, folders: dict[str, Path], taken: Any
) -> None:
    mask = torch.ones(2, 24, dtype=torch.long)
    positions = None
    if padded:
        mask[1, :5] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
    said = []
    for kernel in (False, True):
        model, steps = taken(folders[name], kernel)
        cache = StaticCache(model.config, 32) if static else DynamicCache(config=model.config)
        said.append(logits(model, cache, mask, positions))
        slim = [m.tricksmith_slim for m in model.modules() if hasattr(m, "tricksmith_slim")]
        assert len(steps) == kernel * 9 * sum(memo.mode == "k" for memo in slim) >= kernel
    torch.testing.assert_close(said[0], said[1], rtol=1e-3, atol=2e-3)


def test_positions_with_a_hole_and_masks_with_a_hole_are_not_taken(
    folders: dict[str, Path], taken: Any
) -> None:
    whole = torch.ones(2, 24, dtype=torch.long)
    holed = whole.clone()
    holed[0, 7] = 0
    jumping = torch.arange(24).expand(2, -1).clone()
    jumping[1, 18:] += 3
    for mask, positions, expected in ((holed, None, 0), (whole, jumping, 3)):
        said = []
        for kernel in (False, True):
            model, steps = taken(folders["llama"], kernel)
            said.append(logits(model, DynamicCache(config=model.config), mask, positions))
        assert len(steps) == expected * model.config.num_hidden_layers
        torch.testing.assert_close(said[0], said[1], rtol=1e-3, atol=2e-3)


def test_the_shipped_folder_brings_the_kernel(folders: dict[str, Path]) -> None:
    names = {path.name for path in folders["llama"].glob("*.py")}
    assert {"modeling_slim.py", "slim_step.py", "slim_kernel.py", "slim_source.py", "nvrtc.py"} <= names
