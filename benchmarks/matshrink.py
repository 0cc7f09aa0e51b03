"""MatShrink's precision on the trained model of this repo: pivoted against naive (`make bench-matshrink`).

The compat form of both is stored in each dtype and run in float32, so that all that differs is how the
weights were rounded in their new basis; the perplexity is that of held-out text. Writes
results/matshrink.json.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.evaluate import HELDOUT, MODEL
from tricks import convert, make_plan, parse_trick, read_checkpoint

RESULTS = Path(__file__).parent / "results" / "matshrink.json"
TOKENS = 512


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor(tokenizer(HELDOUT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    rows = ids[: 8 * TOKENS].view(8, TOKENS)

    def loss_of(folder: Path) -> float:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(input_ids=rows, use_cache=False).logits.log_softmax(-1)
        return -logits[:, :-1].gather(-1, rows[:, 1:, None]).mean().item()

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            source = Path(scratch) / name
            stored: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
            stored.save_pretrained(source)
            before = loss_of(source)
            for pivot in ("first", "qr"):
                plan = make_plan(
                    read_checkpoint(source), [parse_trick(f"matshrink:form=compat,pivot={pivot}")]
                )
                out = source.with_name(f"{name}-{pivot}")
                done = convert(plan, source, out)
                after = loss_of(out)
                results.append(
                    {
                        "dtype": name,
                        "pivot": pivot,
                        "worst condition number": round(done.conditions["matshrink.block"], 1),
                        "perplexity of the source": math.exp(before),
                        "perplexity": math.exp(after),
                    }
                )
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("| dtype | channels | worst condition number | perplexity, source | perplexity |")
    print("|---|---|---:|---:|---:|")
    for one in results:
        print(
            f"| {one['dtype']} | {one['pivot']} | {one['worst condition number']:,.0f} | "
            f"{one['perplexity of the source']:.4f} | {one['perplexity']:.4f} |"
        )


if __name__ == "__main__":
    main()
