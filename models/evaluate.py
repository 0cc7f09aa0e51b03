"""Perplexity of the committed model on the held-out text, beside that of the same wiring untrained.

    python -m models.evaluate                # float32 and bfloat16, trained and untrained, on the CPU
    python -m models.evaluate --json

Windows of 511 tokens, none overlapping, each behind the start token; every token of the text counts once.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-llama"
HELDOUT = ROOT / "models" / "heldout.txt"
CONTEXT = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.inference_mode()
def perplexity(model: Any, tokens: torch.Tensor, start: int, context: int = CONTEXT) -> float:
    """exp of the mean negative log likelihood of `tokens` (n,), in windows of `context` with the `start` token first."""
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
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.bos_token_id


def trained(folder: Path = MODEL, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def untrained(folder: Path = MODEL, dtype: torch.dtype = torch.float32) -> Any:
    """The same wiring as initialised with seed 0."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(dtype).eval()


def measure(folder: Path, text: str) -> dict[str, Any]:
    """Perplexities by dtype, trained and untrained, and the trained one's bits per byte (free of the tokenizer)."""
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.folder, options.text.read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:>12,.3f}" if isinstance(value, float) else f"{name:32} {value:>12,}")


if __name__ == "__main__":
    main()
