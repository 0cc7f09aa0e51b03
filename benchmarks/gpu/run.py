"""`make bench-gpu`: everything measured on the CUDA card of this machine, into JSON and plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results/gpu.json"
NAMES = ("correct", "decode", "pieces", "generate", "other", "convert", "verify", "flashnorm")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts named, or all; 2 and one line where there is no CUDA card."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*NAMES, []], help="all of them where none is named")
    parser.add_argument("--minutes", type=float, help="stop then, the parts in their order; all: about ten")
    given = parser.parse_args(arguments)
    if given.minutes is not None and not given.minutes > 0:
        parser.error("--minutes takes a number above 0")
    chosen = given.parts or NAMES
    if not torch.cuda.is_available():
        print("bench-gpu needs a CUDA card, and this machine has none that torch can use", file=sys.stderr)
        return 2
    from benchmarks.gpu import clock, convert, correct, flashnorm, generate, other, slim_decode

    if given.minutes:
        clock.BUDGET.start(given.minutes)
    out = Path(os.environ.get("OUT", RESULTS.parent)) / "gpu.json"
    bandwidth = clock.copy_bandwidth()
    parts: dict[str, Callable[[], Any]] = {
        "correct": correct.run,
        "decode": lambda: slim_decode.run(bandwidth),
        "pieces": slim_decode.pieces,
        "generate": generate.run,
        "other": other.run,
        "convert": convert.run,
        "verify": _verify,
        "flashnorm": flashnorm.run,
    }
    found = kept(json.loads(out.read_text()) if out.exists() else {}, given.parts, clock.card()["card"])
    found |= {"command": _command(given), **clock.card(), "copy_bytes_per_second": bandwidth}
    print(found["card"], f"{bandwidth / 1e12:.2f} TB/s", flush=True)
    seconds = found["seconds"] = found.get("seconds", {})
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        try:
            made = parts[name]()
            found[name] = made if isinstance(made, dict) else []
            for row in () if isinstance(made, dict) else made:
                found[name].append(row)
                out.write_text(json.dumps(found, indent=1) + "\n")
        except Exception as error:  # noqa: BLE001 - the other parts are still worth their time
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        seconds[name] = round(time.perf_counter() - begin)
        print(f"   {seconds[name]} s", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failed or not found.get("correct", {"ok": True})["ok"] else 0


def _verify() -> Iterator[dict[str, Any]]:
    from benchmarks.gpu import verify  # what it imports of `evals` wants more packages than the other parts

    return verify.run()


def kept(before: dict[str, Any], parts: list[str], card: str) -> dict[str, Any]:
    """What stays of an earlier run: the parts that are not run now, where some are named, of the same card.

    `earlier` says for each which command it comes from.
    """
    if not parts or before.get("card") != card:
        return {}
    stay = [name for name in NAMES if name in before and name not in parts]
    commands = {name: before.get("earlier", {}).get(name, before["command"]) for name in stay}
    seconds = {name: took for name, took in before.get("seconds", {}).items() if name in stay}
    return {**{name: before[name] for name in stay}, "earlier": commands, "seconds": seconds}


def _command(given: argparse.Namespace) -> str:
    words = [*given.parts, *(["--minutes", f"{given.minutes:g}"] if given.minutes else [])]
    return f'make bench-gpu ARGS="{" ".join(words)}"' if words else "make bench-gpu"


if __name__ == "__main__":
    raise SystemExit(main())
