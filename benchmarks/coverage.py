"""`make coverage`: FlashNorm on every language-model type that the installed transformers registers.

Each type's small random model (float64, random gains and biases) is saved in its own checkpoint format,
planned, converted, loaded with stock transformers and compared with its source. The result is
`docs/coverage.md` and `benchmarks/results/coverage.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import transformers

from benchmarks.coverage_model import FAMILIES, types
from benchmarks.coverage_row import FORMS, NOTHING, REFUSED, VERIFIED, Row, measure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/coverage.json"


def main() -> int:
    """Measure the types asked for, all by default; exit 1 if one is wrong or crashes."""
    parser = argparse.ArgumentParser(prog="make coverage", description=__doc__)
    parser.add_argument("type", nargs="*", help="model types (default: all, and the tables are renewed)")
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="only this part of them")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    wanted = [
        (family, model_type, architecture)
        for family in args.family or FAMILIES
        for model_type, architecture in types(family).items()
        if not args.type or model_type in args.type
    ]
    begin = time.perf_counter()
    rows = _measure_all(wanted, args.jobs)
    seconds = time.perf_counter() - begin
    if not args.type:
        _write(rows, seconds)
    for family, counts in _counts(rows).items():
        print(f"{family}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    return int(any(row.status not in (VERIFIED, NOTHING, REFUSED) for row in rows))


def _measure_all(wanted: list[tuple[str, str, str]], jobs: int) -> list[Row]:
    rows = []
    # A process is renewed now and then: hundreds of modelling modules are imported on the way.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=25) as pool:
        for row in pool.imap_unordered(_measure, wanted):
            rows.append(row)
            what = row.reason or f"{row.folded} of {row.norms} norms folded, error {row.error}"
            line = f"{len(rows)}/{len(wanted)} {row.type}: {row.status}; {what} ({row.seconds} s)"
            print(line, file=sys.stderr, flush=True)
    order = {entry: place for place, entry in enumerate(wanted)}
    return sorted(rows, key=lambda row: order[row.family, row.type, row.architecture])


def _measure(entry: tuple[str, str, str]) -> Row:
    return measure(*entry)


def _counts(rows: list[Row]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.family, Counter())[row.status] += 1
    return counts


def _write(rows: list[Row], seconds: float) -> None:
    """Renew the families that were measured; the others stay as they were measured before."""
    parts = json.loads(RESULTS.read_text())["parts"] if RESULTS.exists() else {}
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        share = round(seconds * sum(row.seconds for row in mine) / sum(row.seconds for row in rows))
        parts[family] = {
            "transformers": transformers.__version__,
            "seconds": share,
            "rows": [asdict(row) for row in mine],
        }
    RESULTS.write_text(json.dumps({"command": "make coverage", "parts": parts}, indent=1) + "\n")
    every = [Row(**row) for family in FAMILIES if family in parts for row in parts[family]["rows"]]
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    (ROOT / "docs/coverage.md").write_text("\n".join(_page(every, minutes)) + "\n")


def _page(rows: list[Row], minutes: float) -> list[str]:
    lines = [
        "# FlashNorm on every language model of transformers",
        "",
        f"Written by `make coverage` with transformers {transformers.__version__} in {minutes:.0f} min.",
        "Each type's small random model, in float64 and with random gains and biases, was saved in its own",
        "checkpoint format, planned, converted, loaded by stock transformers and compared with its source.",
        "*Verified*: outputs agree to 1e-9 relative. *Nothing to fold*: every norm is left, for the reasons",
        "given. *Refused*: no plan is made, for the reason given.",
        "",
        "| family | types | verified | nothing to fold | refused |",
        "|---|---|---|---|---|",
    ]
    for family, counts in _counts(rows).items():
        numbers = [counts.total(), counts[VERIFIED], counts[NOTHING], counts[REFUSED]]
        lines.append(f"| {family} | " + " | ".join(map(str, numbers)) + " |")
    lines += ["", "## Forms", ""]
    lines += [
        "How many types each other form applies to, all proven to 1e-9; `coverage.json` says why not where",
        "it does not.",
        "",
    ]
    lines += ["| form | " + " | ".join(FAMILIES) + " |", "|---|" + "---|" * len(FAMILIES)]
    for form in FORMS:
        proven = [sum(isinstance(r.forms.get(form), float) for r in rows if r.family == f) for f in FAMILIES]
        lines.append(f"| {form} | " + " | ".join(map(str, proven)) + " |")
    for family in FAMILIES:
        lines += ["", f"## {family[0].upper()}{family[1:]}", ""]
        lines += ["| type | result | folded | error | norms left, and why |", "|---|---|---|---|---|"]
        lines += [_line(row) for row in rows if row.family == family]
    return lines


def _line(row: Row) -> str:
    error = "" if row.error is None else f"{row.error:.0e}"
    left = row.reason or "; ".join(f"{count}× {reason}" for reason, count in row.left.items())
    folded = f"{row.folded} of {row.norms}" if row.status != REFUSED else ""
    return f"| {row.type} | {row.status} | {folded} | {error} | {left.replace('|', '/')} |"


if __name__ == "__main__":
    raise SystemExit(main())
