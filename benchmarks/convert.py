"""How fast and how lean a FlashNorm conversion is: `make bench-convert`.

In one run, interleaved and several times each, on one random 1 GB Llama (bfloat16, 4 shards):

- `cp -r` of the folder, then fsync of the copy's files: what moving the bytes costs at the least;
- Tricksmith's plan and conversion, which fsyncs what it writes;
- `flashify_repo` of the PyPI package transformer-tricks, in a venv of its own; it fsyncs nothing.

Each run is a fresh process that times its imports apart; the ratios are of medians of the work alone.
Then memory over model size, and whether both tools wrote the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.random_llama import LARGEST_BYTES

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench-convert"
RESULTS = ROOT / "benchmarks" / "results" / "convert.json"
PEER = "transformer-tricks==0.4.1"
SERIES = (2, 4, 9)
"""Layers of the models over which memory is measured: about 0.25, 0.5 and 1 GB. The last one is timed."""

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go (JSON)")
    rounds, out = (given := parser.parse_args()).rounds, given.out

    BUILD.mkdir(parents=True, exist_ok=True)
    models = [_model(layers) for layers in SERIES]
    peer = _peer_venv()
    source = models[-1]
    load = os.getloadavg()

    runs: dict[str, list[Figures]] = {"cp": [], "tricksmith": [], "flashify": []}
    steps: list[tuple[str, Callable[[Path], Figures]]] = [
        ("cp", lambda to: _copy(source, to)),
        ("tricksmith", lambda to: _child(sys.executable, "benchmarks.convert_run", source, to)),
        ("flashify", lambda to: _child(str(peer), "benchmarks.flashify_run", source, to)),
    ]
    for number in range(rounds):
        for name, step in steps:
            _say(f"round {number + 1} of {rounds}: {name}")
            runs[name].append(step(_fresh(name)))
    same = _compare(BUILD / "tricksmith", BUILD / "flashify")
    series = []
    for model in models:
        _say(f"memory: {model.name}")
        run = _child(sys.executable, "benchmarks.convert_run", model, _fresh("series"))
        series.append({"weight_bytes": _weight_bytes(model), **run})

    figures = _figures(runs, same, series)
    figures["machine"] = {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "load_before": load,
        "load_after": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")}
        | {"peer": PEER},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    for name in ("cp", "tricksmith", "flashify", "series"):
        shutil.rmtree(BUILD / name)
    print(table(figures))


def _figures(runs: dict[str, list[Figures]], same: Figures, series: list[Figures]) -> Figures:
    """All figures and whether the targets are met."""
    medians = {
        name: {key: statistics.median(run[key] for run in every) for key in every[0]}
        for name, every in runs.items()
    }
    work = {name: medians[name]["work_s"] for name in medians}
    lean = max(run["peak_rss"] - run["import_rss"] for run in series)
    return {
        "weight_bytes": series[-1]["weight_bytes"],
        "largest_tensor_bytes": LARGEST_BYTES,
        "medians": medians,
        "runs": runs,
        "memory_by_size": series,
        "same_weights": same,
        "targets": {
            "times faster than flashify_repo": _target(work["flashify"] / work["tricksmith"], at_least=10),
            "times cp -r with sync": _target(work["tricksmith"] / work["cp"], at_most=1.5),
            "peak above imports, in largest tensors": _target(lean / LARGEST_BYTES, at_most=3),
        },
    }


def _target(value: float, at_least: float | None = None, at_most: float | None = None) -> Figures:
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {"value": round(value, 2), "at_least": at_least, "at_most": at_most, "met": met}


def table(figures: Figures) -> str:
    """The figures as Markdown."""
    labels = {
        "cp": "`cp -r` and sync",
        "tricksmith": "Tricksmith, plan and FlashNorm conversion",
        "flashify": f"`flashify_repo` ({PEER})",
    }
    lines = [
        "| | work, s | of it on the CPU, s | imports, s | peak memory, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, label in labels.items():
        got = figures["medians"][name]
        lines.append(
            f"| {label} | {got['work_s']:.2f} | {got['cpu_s']:.2f} "
            f"| {got['import_s']:.2f} | {got['peak_rss'] / 1e6:.0f} |"
        )
    lines += [
        "",
        "| weights, MB | after imports, MB | peak, MB | above imports, MB |",
        "|---:|---:|---:|---:|",
    ]
    for run in figures["memory_by_size"]:
        above = run["peak_rss"] - run["import_rss"]
        lines.append(
            f"| {run['weight_bytes'] / 1e6:.0f} | {run['import_rss'] / 1e6:.0f} "
            f"| {run['peak_rss'] / 1e6:.0f} | {above / 1e6:.0f} |"
        )
    lines += ["", "| target | measured | asked for | |", "|---|---:|---:|---|"]
    for name, got in figures["targets"].items():
        asked = f"≥ {got['at_least']}" if got["at_least"] is not None else f"≤ {got['at_most']}"
        lines.append(f"| {name} | {got['value']} | {asked} | {'met' if got['met'] else 'missed'} |")
    same = figures["same_weights"]
    lines += [
        "",
        f"Largest tensor {figures['largest_tensor_bytes'] / 1e6:.0f} MB. Of {same['tensors']} tensors, "
        f"{same['identical']} are the same bit for bit in both tools' outputs; the largest difference "
        f"relative to a tensor's largest value is {same['largest_difference']:.1e}.",
    ]
    return "\n".join(lines)


def _model(layers: int) -> Path:
    """The random model with that many layers, built once and kept in the build folder."""
    folder = BUILD / f"llama-{layers}-layers"
    if not folder.exists():
        _say(f"building {folder.name}")
        part = _fresh(f"{folder.name}.part")
        _run([sys.executable, "-m", "benchmarks.random_llama", str(part), str(layers)])
        part.rename(folder)
    return folder


def _peer_venv() -> Path:
    """The python of a venv with the peer, on the same versions of what both use; made once."""
    python = BUILD / "venv" / "bin" / "python"
    ready = BUILD / "venv" / PEER
    if not ready.exists():
        _say(f"installing {PEER} into {BUILD / 'venv'}")
        shutil.rmtree(BUILD / "venv", ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(BUILD / "venv")])
        _run([str(python), "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"), PEER])
        ready.touch()
    return python


def _fresh(name: str) -> Path:
    """A path in the build folder where nothing is, with no earlier write left for the next run to wait on."""
    path = BUILD / name
    shutil.rmtree(path, ignore_errors=True)
    os.sync()
    return path


def _copy(source: Path, out: Path) -> Figures:
    """Copy with `cp -r` and fsync the copied files, as a conversion does with its own."""
    began = time.perf_counter()
    process = subprocess.Popen(["cp", "-r", str(source), str(out)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"cp failed with exit code {process.returncode}")
    for path in [*sorted(out.iterdir()), out]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return {
        "import_s": 0.0,
        "work_s": time.perf_counter() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss": usage.ru_maxrss * 1024,
    }


def _child(python: str, module: str, source: Path, out: Path) -> Figures:
    """Run a measuring module and read its figures; `process_s` is the whole process, interpreter included."""
    began = time.perf_counter()
    printed = _run([python, "-m", module, str(source), str(out)])
    figures: Figures = json.loads(printed.splitlines()[-1])
    figures["process_s"] = time.perf_counter() - began
    return figures


def _run(command: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}")
    return done.stdout


def _compare(ours: Path, theirs: Path) -> Figures:
    printed = _run([sys.executable, "-m", "benchmarks.same_weights", str(ours), str(theirs)])
    figures: Figures = json.loads(printed)
    return figures


def _weight_bytes(folder: Path) -> int:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return int(index["metadata"]["total_size"])


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
