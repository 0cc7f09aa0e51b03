"""Perplexity of the committed model on the held-out text, beside that of the same wiring untrained.

    python -m models.evaluate                # float32 and bfloat16, trained and untrained, on the CPU
    python -m models.evaluate --record       # the same, written to the folder's training.json as well

Windows of 511 tokens, none overlapping, each behind the start token; every token of the text counts once.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-llama"
HELDOUT = ROOT / "models" / "heldout.txt"
CONTEXT = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.inference_mode()
def perplexity(model: Any, tokens: torch.Tensor, start: int, context: int = CONTEXT) -> float:
    """exp of the mean negative log likelihood of `tokens` (n,), in windows that begin with `start`."""
    device = next(model.parameters()).device
    total = 0.0
    for window in tokens.split(context - 1):
        inputs = torch.cat([torch.tensor([start]), window]).to(device)  # (1 + w,)
        logits = model(input_ids=inputs[None]).logits[0, :-1].float()  # (w, vocabulary)
        total += torch.nn.functional.cross_entropy(logits, inputs[1:], reduction="sum").item()
    return math.exp(total / len(tokens))


def tokens_of(text: str, folder: Path = MODEL) -> tuple[torch.Tensor, int]:
    """The tokens (n,) of a text without special ones, and the id of the start token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids), tokenizer.bos_token_id


def trained(folder: Path = MODEL, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def untrained(folder: Path = MODEL, dtype: torch.dtype = torch.float32) -> Any:
    """The same wiring as initialised with seed 0."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(dtype).eval()


def measure(folder: Path, text: str) -> dict[str, Any]:
    """Perplexities by dtype, trained and untrained, and bits per byte, which owe nothing to the tokenizer."""
    tokens, start = tokens_of(text, folder)
    figures: dict[str, Any] = {"tokens": len(tokens), "bytes": len(text.encode())}
    for name, dtype in DTYPES.items():
        figures[f"untrained {name}"] = perplexity(untrained(folder, dtype), tokens, start)
        figures[f"trained {name}"] = perplexity(trained(folder, dtype), tokens, start)
    bits = math.log2(figures["trained bfloat16"]) * figures["tokens"] / figures["bytes"]
    return figures | {"trained bfloat16 bits per byte": bits}


def main() -> None:
    parser = argparse.ArgumentParser(description="Print held-out perplexities, trained and untrained.")
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--text", type=Path, default=HELDOUT)
    parser.add_argument("--record", action="store_true", help="write the figures to FOLDER/training.json")
    options = parser.parse_args()
    figures = measure(options.folder, options.text.read_text(encoding="utf-8"))
    for name, value in figures.items():
        print(f"{name:32} {value:>12,.3f}" if isinstance(value, float) else f"{name:32} {value:>12,}")
    if options.record:
        path = options.folder / "training.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record["held-out perplexity as committed"] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()
        } | {"device": "cpu", "torch": torch.__version__, "transformers": transformers.__version__}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
