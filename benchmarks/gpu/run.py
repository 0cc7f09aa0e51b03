"""`make bench-gpu`: everything measured on the CUDA card of this machine, into JSON and plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results/gpu.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts named, or all; 2 and one line where there is no CUDA card."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    names = ("correct", "decode", "flashnorm", "generate", "other", "convert")
    parser.add_argument("parts", nargs="*", choices=[*names, []], help="all of them where none is named")
    chosen = parser.parse_args(arguments).parts or names
    if not torch.cuda.is_available():
        print("bench-gpu needs a CUDA card, and this machine has none that torch can use", file=sys.stderr)
        return 2
    from benchmarks.gpu import clock, convert, correct, flashnorm, generate, other, slim_decode

    out = Path(os.environ.get("OUT", RESULTS.parent)) / "gpu.json"
    bandwidth = clock.copy_bandwidth()
    parts: dict[str, Callable[[], Any]] = {
        "correct": correct.run,
        "decode": lambda: slim_decode.run(bandwidth),
        "flashnorm": flashnorm.run,
        "generate": generate.run,
        "other": other.run,
        "convert": convert.run,
    }
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    found |= {"command": "make bench-gpu", **clock.card(), "copy_bytes_per_second": bandwidth}
    print(found["card"], f"{bandwidth / 1e12:.2f} TB/s", flush=True)
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        try:
            found[name] = parts[name]()
        except Exception as error:  # noqa: BLE001 - the other parts are still worth their time
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        torch.cuda.empty_cache()
        print(f"   {time.perf_counter() - begin:.0f} s", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failed or not found.get("correct", {"ok": True})["ok"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
