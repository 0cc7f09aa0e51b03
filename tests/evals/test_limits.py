"""Memory that is too small, memory that runs out, and a source that was asked before."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from evals import MemoryLimit, Verdict, compare, load_recipe, parse_recipe
from evals.models import Kind, Place, loaded

TASK = "base: quick\ntokens: 64\nwindow: 32\ntasks: [tricksmith_copy]\nlimit: 6\nbatch: 4\n"


@contextmanager
def before_every(kind: type[nn.Module], do: Callable[[nn.Module, tuple], object]) -> Iterator[None]:
    """Call `do` before each forward pass of a module of this kind."""

    def hook(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, kind):
            do(module, inputs)

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A random model of 130 MB in float32, its layers most of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models") / "large"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20MB")
    return folder


def test_a_model_larger_than_the_memory_allowed_is_verified_from_its_files(large):
    free = compare(large, large, tokens=48)
    used = psutil.Process().memory_info().rss
    limit = MemoryLimit(cpu=used + 90 * 2**20)
    with loaded(large, Kind.CAUSAL, Place(torch.float32, "cpu", limit)) as found:
        assert found.offloaded
        assert "disk" in found.model.hf_device_map.values()
        held = sum(p.numel() * 4 for p in found.model.parameters() if p.device.type != "meta")
    assert held < 90 * 2**20 < sum(f.stat().st_size for f in large.glob("*.safetensors")) * 2
    tight = compare(
        large, large, tokens=48, memory=MemoryLimit(cpu=psutil.Process().memory_info().rss + 2**25)
    )
    assert tight.verdict is free.verdict is Verdict.EQUIVALENT
    assert tight.wide.identical
    assert tight.perplexity is None
    assert tight.floors[0].rms == pytest.approx(free.floors[0].rms, rel=1e-3)


WIDE = """
import json, resource, sys
from pathlib import Path
import torch
from evals import compare, parse_recipe

source = Path(sys.argv[1])
recipe = parse_recipe("tokens: 900\\nwindow: 128\\nbatch: 8\\n")
torch.set_num_threads(1)
usual = compare(source, source, recipe=recipe)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# One row of a batch takes 16 MiB for each of the MLP's three activations, eight take 128.
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20, resource.RLIM_INFINITY))
tight = compare(source, source, recipe=recipe)
print(json.dumps([[e.verdict, e.settings["batch"], e.notes, e.floors[0].rms] for e in (usual, tight)]))
"""


def test_where_memory_runs_out_a_smaller_batch_is_tried_and_said(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=2**15,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "wide")
    # The kernel refuses the memory, in a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", WIDE, str(tmp_path / "wide")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    usual, tight = json.loads(done.stdout)
    assert usual[0] == tight[0] == "equivalent"
    assert usual[1] == 8
    assert tight[1] < 8
    assert any("out of memory with 8 windows at a time: went on with 4" in note for note in tight[2])
    assert tight[3] == pytest.approx(usual[3], rel=1e-2)


def test_a_task_that_runs_out_of_memory_goes_on_with_smaller_batches(tiny_llama):
    def most_two_rows(module: nn.Module, inputs: tuple) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with before_every(nn.Embedding, most_two_rows):
        evidence = compare(tiny_llama, tiny_llama, recipe=parse_recipe(TASK))
    assert evidence.verdict is Verdict.EQUIVALENT
    assert any(
        "out of memory in tricksmith_copy: went on with batches of 2" in note for note in evidence.notes
    )
    assert evidence.tasks[0].likelihoods == (0.0,) * 7


def test_a_source_is_asked_once_and_again_where_anything_differs(tiny_llama, edited, tmp_path):
    rows: list[int] = []
    cache = tmp_path / "cache"

    def ask(source: Path, recipe: str = TASK) -> tuple[int, bool]:
        rows.clear()
        with before_every(nn.Embedding, lambda _, inputs: rows.append(len(inputs[0]))):
            evidence = compare(source, source, recipe=parse_recipe(recipe), cache=cache)
        return sum(rows), evidence.tasks[0].cached

    with before_every(nn.Embedding, lambda _, inputs: rows.append(len(inputs[0]))):
        compare(tiny_llama, tiny_llama, recipe=parse_recipe(TASK.replace("tasks: [tricksmith_copy]", "")))
    untasked = sum(rows)
    first, known = ask(tiny_llama)
    assert not known
    second, known = ask(tiny_llama)
    assert known
    assert first - untasked == 2 * (second - untasked) > 0  # one model was asked, not two
    assert ask(tiny_llama, TASK.replace("limit: 6", "limit: 5"))[1] is False
    assert ask(edited(tiny_llama, lambda t: t["model.norm.weight"].mul_(1.5)))[1] is False
    for file in cache.glob("*.json"):
        file.write_text("{half of")
    assert ask(tiny_llama) == (first, False)


def test_recipes_by_name_are_those_of_their_files(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: standard\ntokens: 99\n")
    assert load_recipe(str(own)) == dataclasses.replace(load_recipe("standard"), name="mine", tokens=99)
