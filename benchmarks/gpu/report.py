"""`docs/gpu.md` and its plots, written from `benchmarks/results/gpu.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.gpu.run import NAMES, RESULTS

DOCS = Path(__file__).parents[2] / "docs"

_PAGE = """# On a CUDA card

```
make bench-gpu                       # everything; ARGS="decode generate" runs parts of it
make bench-gpu ARGS="--minutes 5"    # the parts in their order, until then
```

measures all that this page says on whatever CUDA card there is, writes `benchmarks/results/gpu.json`,
this page and its plots, and exits with one line where there is no card. Figures below: **{card}**,
torch {torch}, CUDA {cuda}, cuDNN {cudnn}, transformers {transformers}; a large copy moves {copy:.2f}
TB/s. bfloat16 throughout, every call inside a CUDA graph, medians; a large copy in front of each empties
the second cache and gives the host time to queue the graph. From one run of
`{command}`, which took {seconds} seconds.

Nothing needs to be switched on. A slim model decodes with the kernel where card and shape allow, a
`defer` model takes the fused norm at up to 16 tokens, and both run the same sums in plain torch
elsewhere, with one line that says why. Both kernels travel with the converted model: the first is
compiled by torch's own NVRTC, the second by the Triton that torch for CUDA brings along.
`python -m tricks.hub_kernel FOLDER` writes them as a repository for the Hub's `kernels` package as well.
Models compiled with `torch.compile` (`generate` does so with a static cache) keep to plain torch; CUDA
graphs of one's own take the kernels.

## Slim attention, one layer, one token

The cache [K | C] is read once: a thread-block cluster splits the columns, since the sums of all heads
over all columns (557 KB at Llama-2-7B's size) fit no single multiprocessor, and its blocks exchange
softmax weights through distributed shared memory. Tiles of 16 tokens come by the tensor memory
accelerator and are multiplied on tensor cores out of shared memory (`wgmma`); clusters share the tiles of
the whole batch evenly, whatever its rows' lengths, and a second kernel puts together rows that several
had. `stock` is the fastest of SDPA's flash, cuDNN and memory-efficient kernels{flex}, in the same run;
residual d/16 in 16 bits.

{decode}

![Decode against the best stock kernel](images/gpu-decode.png)

The targets were 1.6x for Llama-2-7B and Phi-3-mini, and 1.25 times reading the cache once. **Of these
{count}, {fast} reach the first and {near} the second.** What is left is a cost that does not grow with the
cache: clusters start, and the sums of all heads of every piece of a row go to memory and are put together,
which weighs the more the shorter the cache and the narrower the model. A block asks for about 80 KB at a
time: with more on the way, some clusters are served at the cost of others, and all wait for the last. What
else a slim layer of Llama-2-7B's sizes launches for a token, in microseconds: the
feedback of its rounding errors in four kernels (beside what the same takes in torch), the residual in
two, and the product with [A; B], which reads that matrix once for 32 rows of the batch, on tensor cores.
The last two columns are what stock code does in the place of all these.

{pieces}

What the kernel takes: heads of 16 to 256 numbers in steps of 16, float16 and bfloat16, contiguous or paged
caches, rows of any length with padding at their left, sliding windows, ALiBi, soft caps, residuals in 8 and
16 bits or none. Not: grouped keys (nothing is gained there), norms on keys, partial or interleaved rotary
embeddings, cards other than Hopper. Those decode in plain torch, and the log has one line that says why.

Correctness: {cases} shapes, dtypes and features (head sizes 64 to 256, float16 and bfloat16, lengths
that differ, left padding, windows, ALiBi, soft caps, pages, residuals in 8 and 16 bits) against
float64: the error is at most {worst:.1f} times the rounding of the result's dtype, two calls give the
same bits, and a NaN stays in its row of the batch.

## Whole models

One step of `Llama-2-7B` and `Phi-3-mini-128k` with random weights, a full static cache, source against
slim with residual d/16 in 8 bits and, as conversions ask for it, rounding with error feedback.

{generate}

{largest}

Twice the tokens fit. Slim is **faster at a long context and slower at a short one**: beside attention,
each layer feeds rounding errors back, makes its residual and multiplies with [A; B], a fixed cost that a
short cache does not pay back. The source's own order is no way out there, since its value projection is
what the conversion merged away. The kernels are taken wherever they run, because plain torch was
slower at every point, down to 128 tokens:

{without}

## FlashNorm

Norm and linear layer: `F.rms_norm` with gain + cuBLAS (`stock`) against one kernel that measures the
norm while it multiplies and scales at the end. Weights come from device memory each time. Above 16
tokens ours is the weightless norm + cuBLAS. **Never below {slowest:.2f}x; at 1 and 16 tokens {few:.2f}x at
least, and {alone} of these {fews} rows within 1.05 times the linear alone.**

{flashnorm}

![FlashNorm against norm and linear](images/gpu-flashnorm.png)

## Other tricks, whole models

{other}

`strict` gains because its norms are one fused kernel where transformers runs several. `skipless` reads two
matrices of a block less; its source is the same architecture whole.

{refused}

## Conversion

{convert}

Reading and arithmetic run on as many threads as there are cores, writing and hashing on one each, and the
files are on disk when it ends; a copy neither hashes nor waits for the disk. Files come one after the other,
and what bounds each is its SHA-256, which no card makes faster: the card is not used.

## Verification

A model of Llama-3.2-1B's sizes (vocabulary 32,000) over windows of 512 tokens: its logits, and their float64
comparison with kept ones. `tricksmith verify` reads as many windows at once as the card's free memory takes,
the most of each dtype below, and compares logits on the card; eight at once is what it reads on a CPU.

{verify}
"""


ABSENT = "*Not measured in this run.*"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table, first column to the left; without rows it says so."""
    body = list(rows)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) if body else ABSENT


def page(found: dict[str, Any]) -> str:
    """The page's text; parts that were not run say so."""
    found = {**dict.fromkeys(NAMES, ()), **found}
    found["correct"] = found["correct"] or {"cases": []}

    def part(name: str, head: list[str], rows: Iterable[list[str]]) -> str:
        command = found.get("earlier", {}).get(name)
        before = f"From an earlier run on the same card, `{command}`.\n\n" if command else ""
        return before + table(head, rows)

    steps: dict[tuple[str, int, int], dict[str, Any]] = {}
    largest: dict[tuple[str, int], dict[str, int]] = {}
    for row in found["generate"]:
        if "largest_batch" in row:
            largest.setdefault((row["model"], row["context"]), {})[row["form"]] = row["largest_batch"]
        else:
            steps.setdefault((row["model"], row["batch"], row["context"]), {})[row["form"]] = row
    fews = [row for row in found["flashnorm"] if row["tokens"] <= 16]
    gone = {row["trick"]: row["refused"].split(". ")[0] for row in found["other"] if "refused" in row}
    refused = "\n".join(["Not measured in this run:\n", *(f"- `{k}`: {why}" for k, why in gone.items())])
    return _PAGE.format(
        **{key: found[key] for key in ("card", "torch", "cuda", "cudnn", "transformers")},
        command=found["command"],
        seconds=sum(took for name, took in found["seconds"].items() if name not in found.get("earlier", {})),
        flex=" and FlexAttention"
        if any("flex attention" in row["stock_ms"] for row in found["decode"])
        else "",
        refused=refused if gone else "",
        copy=found["copy_bytes_per_second"] / 1e12,
        pieces=part(
            "pieces",
            [
                "batch x context",
                *(name for name in next(iter(found["pieces"]), {}) if name not in ("batch", "context")),
            ],
            (
                [
                    f"{row['batch']} x {row['context']}",
                    *(f"{us:.1f}" for name, us in row.items() if name not in ("batch", "context")),
                ]
                for row in found["pieces"]
            ),
        ),
        without=table(
            ["model", "batch x context", "slim ms", "kernels off, ms"],
            (
                [
                    model,
                    f"{batch} x {context}",
                    f"{forms['slim']['step_ms']:.2f}",
                    f"{forms['slim torch']['step_ms']:.2f}",
                ]
                for (model, batch, context), forms in steps.items()
                if {"slim", "slim torch"} <= forms.keys()
            ),
        ),
        count=len(found["decode"]),
        fast=sum(row["speedup"] >= 1.6 for row in found["decode"]),
        near=sum(row["of_reading_once"] <= 1.25 for row in found["decode"]),
        cases=len(found["correct"]["cases"]),
        worst=max(
            (row["error"] / row["rounding"] for row in found["correct"]["cases"] if row["rounding"]),
            default=0,
        ),
        decode=part(
            "decode",
            ["model", "batch x context", "stock", "ms", "slim ms", "speed-up", "times reading once"],
            (
                [
                    row["model"],
                    f"{row['batch']} x {row['context']}",
                    row["best"],
                    f"{row['stock_ms'][row['best']]:.3f}",
                    f"{row['slim_ms']:.3f}",
                    f"{row['speedup']:.2f}",
                    f"{row['of_reading_once']:.2f}",
                ]
                for row in found["decode"]
            ),
        ),
        generate=part(
            "generate",
            ["model", "batch x context", "source tokens/s", "slim tokens/s", "ratio", "source GB", "slim GB"],
            (
                [
                    model,
                    f"{batch} x {context}",
                    *(f"{forms[form]['tokens_per_second']:.0f}" for form in ("source", "slim")),
                    f"{forms['slim']['tokens_per_second'] / forms['source']['tokens_per_second']:.2f}",
                    *(f"{forms[form]['peak_bytes'] / 1e9:.1f}" for form in ("source", "slim")),
                ]
                for (model, batch, context), forms in steps.items()
                if {"source", "slim"} <= forms.keys() and all(forms[f]["fits"] for f in ("source", "slim"))
            ),
        ),
        largest=table(
            ["model", "context", "largest batch, source", "slim", "ratio"],
            (
                [model, str(context), str(n["source"]), str(n["slim"]), f"{n['slim'] / n['source']:.2f}"]
                for (model, context), n in largest.items()
                if {"source", "slim"} <= n.keys()
            ),
        ),
        slowest=min((row["speedup"] for row in found["flashnorm"]), default=0),
        few=min((row["speedup"] for row in fews), default=0),
        fews=len(fews),
        alone=sum(row["of_linear_alone"] <= 1.05 for row in fews),
        flashnorm=part(
            "flashnorm",
            [
                "width -> columns",
                "tokens",
                "stock us",
                "linear alone us",
                "FlashNorm us",
                "speed-up",
                "times the linear alone",
            ],
            (
                [
                    f"{row['width']} -> {row['columns']}",
                    str(row["tokens"]),
                    *(f"{row[key]:.1f}" for key in ("stock_us", "linear_us", "flashnorm_us")),
                    f"{row['speedup']:.2f}",
                    f"{row['of_linear_alone']:.2f}",
                ]
                for row in found["flashnorm"]
            ),
        ),
        other=part(
            "other",
            ["model", "trick", "batch x context", "before ms", "after ms", "speed-up"],
            (
                [
                    row["model"],
                    f"`{row['trick']}`",
                    f"{row['batch']} x {row['context']}",
                    f"{row['before_ms']:.2f}",
                    f"{row['after_ms']:.2f}",
                    f"{row['speedup']:.2f}",
                ]
                for row in found["other"]
                if "speedup" in row
            ),
        ),
        convert=part(
            "convert",
            [
                "trick",
                "bytes",
                "GB/s",
                "SHA-256 alone GB/s",
                "SHA-256, a file on each core GB/s",
                "to the card, scaled, back GB/s",
                "copying GB/s",
            ],
            (
                [
                    row["trick"],
                    str(row["bytes"]),
                    f"{row['bytes_per_second'] / 1e9:.2f}",
                    f"{row['sha256_bytes_per_second'] / 1e9:.2f}",
                    *(
                        f"{row[key] / 1e9:.2f}" if key in row else "-"
                        for key in ("sha256_threads_bytes_per_second", "card_bytes_per_second")
                    ),
                    f"{row['copy_bytes_per_second'] / 1e9:.2f}",
                ]
                for row in found["convert"]
            ),
        ),
        verify=part(
            "verify",
            ["dtype", "windows at once", "tokens/s"],
            (
                [
                    row["dtype"],
                    str(row["batch"]) if "batch" in row else "comparing alone, on the CPU",
                    f"{row['tokens_per_second']:.0f}",
                ]
                for row in found["verify"]
            ),
        ),
    )


def plots(found: dict[str, Any]) -> None:
    """Bars of both kernels' speed-ups."""
    few = [row for row in found.get("flashnorm", ()) if row["tokens"] <= 16]
    bars = {
        "gpu-decode": (
            [f"{r['model']} {r['batch']} x {r['context'] // 1024}k" for r in found.get("decode", ())],
            [r["speedup"] for r in found.get("decode", ())],
            "slim decode: speed-up over the best stock attention",
        ),
        "gpu-flashnorm": (
            [f"{r['width']} -> {r['columns']}, {r['tokens']}" for r in few],
            [r["speedup"] for r in few],
            "norm + linear, 1 and 16 tokens: speed-up over F.rms_norm + cuBLAS",
        ),
    }
    for name, (labels, values, title) in bars.items():
        if not values:
            continue
        figure = Figure(figsize=(8, 0.32 * len(labels) + 1.2), layout="constrained")
        axes = figure.subplots()
        shown = axes.barh(labels, values, color=["#2b6cb0" if v >= 1 else "#c05621" for v in values])
        axes.bar_label(shown, fmt="%.2f", padding=3)
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.12)
        axes.set_title(f"{title} ({found['card']})", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(DOCS / "images" / f"{name}.png", dpi=120)


def main() -> None:
    """Write the page and the plots."""
    found = json.loads(RESULTS.read_text())
    (DOCS / "gpu.md").write_text(page(found))
    plots(found)


if __name__ == "__main__":
    main()
