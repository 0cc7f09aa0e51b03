"""`make bench-slim`: what slim attention's cache loses, holds and costs, on trained models of this repo.

    make bench-slim                      # both halves; results/slim.json, docs/images/slim_*.png
    make bench-slim ARGS=FOLDER          # the frontier of another model with full heads, printed alone
    make bench-slim ARGS=--draw          # the plots and tables of results/slim.json again

See `slim_frontier` and `slim_speed`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import transformers

from benchmarks.slim_frontier import Frontier
from benchmarks.slim_speed import FORMS, speed

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "slim.json"
IMAGES = HERE.parent / "docs" / "images"
MODELS = [HERE.parent / "models" / name for name in ("tiny-llama", "wirings/gptneox", "wirings/gpt2")]
GOALS = {0.50: 6, 0.53: 0.33, 0.56: 0.13, 0.62: 0.05}
"""Share of a standard cache -> floors: what a prototype with one width for all layers reached."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure slim attention's cache.")
    parser.add_argument("model", type=Path, nargs="?", help="another model's folder")
    parser.add_argument("--draw", action="store_true", help="draw and print what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.model is not None:
        Frontier(options.model).record()
        return
    if not options.draw:
        record = {"speed": speed(), "frontiers": [Frontier(model).record() for model in MODELS]}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        RESULTS.write_text(json.dumps(record | {"versions": versions}, indent=1) + "\n", encoding="utf-8")
    show(json.loads(RESULTS.read_text(encoding="utf-8")))


def show(record: dict[str, Any]) -> None:
    """Print the tables and draw both plots."""
    for frontier in record["frontiers"]:
        print(f"\n{frontier['model']}: floor {frontier['floor']:.2e} nats a token")
        print("| cache | option | bytes | without cos and sin | KL / floor |\n|---|---|---:|---:|---:|")
        for one in frontier["points"]:
            print(
                f"| {one['rule']} | {one['option']} | {one['share']:.1%} | {one['layers']:.1%} "
                f"| {one['floors']:.3g} |"
            )
    print("\n| context | " + " | ".join(FORMS) + " |\n|---:|" + "---:|" * len(FORMS))
    for row in record["speed"]:
        cells = [f"{row[form]['bytes'] / 1e6:.1f} MB, {row[form]['seconds'] * 1e3:.0f} ms" for form in FORMS]
        print(f"| {row['context']} | " + " | ".join(cells) + " |")
    _draw_frontiers(record["frontiers"])
    _draw_speed(record["speed"])


def _draw_frontiers(frontiers: list[dict[str, Any]]) -> None:
    figure, panels = plt.subplots(1, len(frontiers), figsize=(15, 5), sharey=True)
    for panel, frontier in zip(panels, frontiers, strict=True):
        for rule in dict.fromkeys(one["rule"] for one in frontier["points"]):
            points = [one for one in frontier["points"] if one["rule"] == rule]
            panel.plot(
                [one["share"] * 100 for one in points], [one["floors"] for one in points], "o-", label=rule
            )
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.scatter([100 * share for share in GOALS], list(GOALS.values()), marker="x", color="black",
                      label="the first prototype", zorder=3)  # fmt: skip
        panel.set(
            title=frontier["model"], yscale="log", xlim=(25, 66), xlabel="cache bytes, % of K and V in bf16"
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("KL of cached decoding / KL of the source's own bf16")
    panels[0].legend(fontsize=7, loc="upper left")
    _save(figure, "slim_frontier.png")


def _draw_speed(rows: list[dict[str, Any]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    at = [row["context"] for row in rows]
    for form in FORMS:
        left.plot(at, [row[form]["bytes"] / 1e6 for row in rows], "o-", label=form)
        right.plot(at, [row[form]["seconds"] * 1e3 for row in rows], "o-", label=form)
    left.set(xlabel="tokens of context", ylabel="live cache, MB")
    right.set(xlabel="tokens of context", ylabel="a decoding step on the CPU, ms")
    for panel in (left, right):
        panel.legend()
        panel.grid(alpha=0.3)
    _save(figure, "slim_speed.png")


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(IMAGES / name, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
