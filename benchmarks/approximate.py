"""What approximate attention loses on the trained model of this repo (`make bench-approximate`).

Perplexity and KL divergence against window, polynomial, degree, parts and context length, each beside a
plain sliding window with sinks of the *same memory*. Writes results/approximate.json and
docs/images/approximate.png.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.evaluate import HELDOUT, MODEL
from tricks import parse_trick
from tricks.approximate_settle import fit, observed
from tricks.approximate_settle import windows as calibration
from tricks.polynomials import state_size
from tricks.shipped import modeling_approximate as shipped

RESULTS = Path(__file__).parent / "results" / "approximate.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "approximate.png"
TOKENS, SINKS = 512, 4
HEAD = 32


def use(model: Any, options: dict[str, Any]) -> None:
    """Let every attention module of an installed model attend as `options` say."""
    for path, module in model.named_modules():
        if hasattr(module, "tricksmith_approximate"):
            fitted = options.get("layers", {}).get(path, options["coefficients"])
            module.tricksmith_approximate = {**options, "coefficients": fitted}


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor(tokenizer(HELDOUT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    rows = ids[: 3 * TOKENS].view(3, TOKENS)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        source = model(input_ids=rows, use_cache=False).logits.log_softmax(-1)
    # What a conversion sees: text that is neither trained on nor measured with.
    ranges = {w: observed(model, calibration(MODEL, model, w + SINKS), w, SINKS) for w in (32, 64, 128)}
    shipped.install(model, {"window": 4096, "sinks": SINKS, "parts": 1, "coefficients": []})

    def measure(**changed: Any) -> tuple[Any, Any]:
        use(model, {"sinks": SINKS, "parts": 1, "coefficients": [], **changed})
        with torch.no_grad():
            found = model(input_ids=rows, use_cache=False).logits.log_softmax(-1)
        kl = (source.exp() * (source - found)).sum(-1)
        loss = -found[:, :-1].gather(-1, rows[:, 1:, None]).squeeze(-1)
        return kl, loss

    def summary(pair: tuple[Any, Any], context: int = TOKENS) -> dict[str, float]:
        kl, loss = pair
        return {"kl": kl[:, :context].mean().item(), "perplexity": math.exp(loss[:, : context - 1].mean())}

    exact = math.exp(-source[:, :-1].gather(-1, rows[:, 1:, None]).mean())
    results: list[dict[str, Any]] = []
    for window in (32, 64, 128):
        cases = [
            ("none", 0, 1),
            ("taylor", 1, 1),
            ("taylor", 2, 1),
            ("minimax", 1, 1),
            ("minimax", 2, 1),
            ("chebyshev", 2, 1),
            ("minimax", 1, 2),
        ]
        for kind, degree, parts in cases:
            trick = parse_trick(f"approximate:poly={kind},degree={max(degree, 1)},parts={parts}")
            layers = {path: fit(trick, *ends) for path, ends in ranges[window].items()}
            sums = state_size(HEAD, degree, parts) if degree else 0
            # The state's numbers as tokens of a plain cache, whose window may be that much longer.
            extra = math.ceil(sums * (HEAD + 1) / (2 * HEAD))
            pair = measure(window=window, parts=parts, layers=layers)
            fair = measure(window=window + extra)
            for context in (128, 256, TOKENS):
                results.append(
                    {
                        "window": window,
                        "polynomial": kind,
                        "degree": degree,
                        "parts": parts,
                        "context": context,
                        "sums per head": sums,
                        "memory in tokens": window + SINKS + extra,
                        **summary(pair, context),
                        "sliding window of the same memory": summary(fair, context),
                    }
                )
            one = results[-1]
            print(f"{window} {kind} {degree} {parts}: kl {one['kl']:.4f}", flush=True)
    record = {"observed ranges": ranges, "source perplexity": exact, "rows": results}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(record)


def show(record: dict[str, Any]) -> None:
    """Print the table at the full context and draw the plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    whole = [one for one in record["rows"] if one["context"] == TOKENS]
    print(
        "| window | polynomial | degree | parts | memory, tokens | KL | perplexity | KL of a plain window |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for one in whole:
        fair = one["sliding window of the same memory"]["kl"]
        print(
            f"| {one['window']} | {one['polynomial']} | {one['degree']} | {one['parts']} | "
            f"{one['memory in tokens']} | {one['kl']:.3f} | {one['perplexity']:.1f} | {fair:.4f} |"
        )
    figure, axes = plt.subplots(figsize=(7, 4))
    plain = sorted((one["memory in tokens"], one["sliding window of the same memory"]["kl"]) for one in whole)
    axes.plot(*zip(*plain, strict=True), color="black", marker=".", label="sliding window with sinks")
    for kind in ("taylor", "chebyshev", "minimax"):
        for degree, marker in ((1, "o"), (2, "s")):
            chosen = [one for one in whole if (one["polynomial"], one["degree"]) == (kind, degree)]
            if chosen:
                memory, kl = [one["memory in tokens"] for one in chosen], [one["kl"] for one in chosen]
                axes.scatter(memory, kl, marker=marker, label=f"{kind}, degree {degree}")
    axes.set_yscale("log")
    axes.set_xlabel("memory per head, in tokens of a plain cache")
    axes.set_ylabel("KL divergence, nats per token")
    axes.set_title("tiny-llama, 512 tokens of held-out text")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
