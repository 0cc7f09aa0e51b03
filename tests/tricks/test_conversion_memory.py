"""Conversion by any trick holds a few of the tensors it touches in float64, never the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tricks.shipped.modeling_skipless import SkiplessConfig, SkiplessForCausalLM

SIZES = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 2048,
}  # fmt: skip
LARGEST = 512 * 1024 * 8
"""Bytes of a layer's largest matrix in float64."""
LAYERS = 8
_RUN = """
import json, sys
from pathlib import Path
from benchmarks.memory import peak, resident
from tricks import convert, parse_trick, read_checkpoint
from tricks.draft import draft_plan

grown = {}
for trick in ("precompute", "matshrink", "skipless"):
    for layers in (1, LAYERS):
        source = Path(sys.argv[1], ("skipless" if trick == "skipless" else "llama") + str(layers))
        plan = draft_plan(read_checkpoint(source), [parse_trick(trick)])
        assert plan.fits
        Path("/proc/self/clear_refs").write_text("5")
        before = resident()
        convert(plan, source, Path(sys.argv[1], f"{trick}{layers}-out"))
        grown[trick] = peak() - before
print(json.dumps(grown))
""".replace("LAYERS", str(LAYERS))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    for layers in (1, LAYERS):
        llama = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers))
        llama.to(torch.bfloat16).save_pretrained(tmp_path / f"llama{layers}")
        other = SkiplessForCausalLM(SkiplessConfig(**SIZES, num_hidden_layers=layers))
        other.to(torch.bfloat16).save_pretrained(tmp_path / f"skipless{layers}")
    ran = subprocess.run([sys.executable, "-c", _RUN, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    model = LAYERS * (4 * 512 * 512 + 3 * 512 * 1024) * 8
    for trick, grown in json.loads(ran.stdout.splitlines()[-1]).items():
        assert grown < 10 * LARGEST < model / 3, f"{trick} held {grown / LARGEST:.1f} of its largest tensors"
