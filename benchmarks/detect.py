"""A test of the test: does `verify` see damage, and leave honest conversions alone? `make bench-detect`.

Honest: FlashNorm conversions of small random models of many architectures (mixtures of experts among them),
in three storage types, with several seeds, and of the trained model in this repo. Every verdict but
`equivalent` is a false alarm.

Damaged: the trained model, random models with biases and with a sliding window and a mixture of experts,
converted and then spoilt in the ways of `benchmarks/damages.py` and `damages_files.py`, each at several
strengths. The size of a damage is the divergence from the source over that of the source's own rounding
noise, both as measured. Two things see damage: the files, held against plan and source, and the runs. What
the runs alone would have missed is named with its size, and so is what both miss.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from benchmarks.damages import DAMAGES, NotHere, damaged
from benchmarks.damages_files import FILE_DAMAGES
from benchmarks.zoo import DENSE, EXPERTS, make
from evals import Evidence, Verdict, compare
from tricks import BadInput, Plan, TricksmithError, convert, make_plan, parse_trick, read_checkpoint

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench-detect"
RESULTS = ROOT / "benchmarks" / "results" / "detect.json"
PICTURE = ROOT / "docs" / "images" / "detection.png"
TRAINED = ROOT / "models" / "tiny-llama"
KEPT = BUILD / "rows.jsonl"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Figures = dict[str, Any]
REFUSED: Figures = {"verdict": "refused", "seen_by": ["loading"], "failed": [], "size": None, "shares": {}}
"""A folder that does not load at all is not compared: one line says so, and nothing is published."""
CAUGHT = (Verdict.DIFFERENT.value, "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clean", type=int, default=200, help="honest conversions (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="of each comparison (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was stopped had got")
    parser.add_argument("--only", default="", help="the kinds of damage with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go (JSON)")
    given = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    BUILD.mkdir(parents=True, exist_ok=True)
    # Every comparison collects garbage four times; what was imported need not be searched for it.
    gc.freeze()
    if not given.resume:
        KEPT.unlink(missing_ok=True)
    done = _kept()
    clean = list(_honest(given.clean, given.tokens, done))
    harmed = list(_damaged(given.tokens, done, given.only))
    result = _summary(clean, harmed) | {
        "tokens": given.tokens,
        "seconds": round(sum(row.get("seconds", 0) for row in (*clean, *harmed))),
        "software": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "honest": clean,
        "damaged": harmed,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if given.out == RESULTS and not given.only:
        _draw(harmed)
    _print(result)
    sys.exit(0 if result["targets_met"] else 1)


def _key(row: Figures) -> str:
    return json.dumps([row.get(name) for name in ("type", "dtype", "seed", "model", "damage", "strength")])


def _kept() -> dict[str, Figures]:
    """The rows of a run that was stopped."""
    if not KEPT.is_file():
        return {}
    return {_key(row): row for row in map(json.loads, KEPT.read_text().splitlines())}


def _keep(row: Figures) -> Figures:
    with KEPT.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def _honest(count: int, tokens: int, before: dict[str, Figures]) -> Iterator[Figures]:
    """Verdicts on honest conversions: all types in all storage types with one seed, then with the next."""
    done = seed = 0
    types = [*EXPERTS, *DENSE]
    while done < count:
        for name in list(types):
            for dtype in DTYPES:
                if done == count:
                    return
                known = {"type": name, "dtype": str(dtype)[6:], "seed": seed}
                if (row := before.get(_key(known))) is not None:
                    done += 1
                    yield row
                    continue
                source, made = BUILD / "source", BUILD / "converted"
                try:
                    plan = _convert(make(_fresh(source), name, dtype, seed), made)
                except (TricksmithError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                    _say(f"left out: {name}: {str(error).splitlines()[0][:120]}")
                    types.remove(name)
                    break
                evidence = compare(source, made, tokens=tokens, plan=plan)
                done += 1
                row = known | _figures(evidence)
                _say(
                    f"{done}/{count} {name} {str(dtype)[6:]} {seed}: {row['verdict']} {row['reasons'] or ''}"
                )
                yield _keep(row)
        seed += 1


def _damaged(tokens: int, before: dict[str, Figures], only: str) -> Iterator[Figures]:
    sources = {
        "tiny-llama (trained)": TRAINED,
        "qwen2 (random, biases)": make(_fresh(BUILD / "qwen2"), "qwen2", torch.bfloat16, 1),
        "gemma2 (random, window)": make(_fresh(BUILD / "gemma2"), "gemma2", torch.bfloat16, 1),
        "qwen3_moe (random, experts)": make(_fresh(BUILD / "moe"), "qwen3_moe", torch.bfloat16, 1),
    }
    for label, source in sources.items():
        made = BUILD / "converted"
        plan = _convert(source, made)
        for damage in (damage for damage in (*DAMAGES, *FILE_DAMAGES) if only in damage.name):
            for strength in damage.strengths:
                row = {"model": label, "damage": damage.name, "strength": strength}
                if _key(row) in before:
                    yield before[_key(row)]
                    continue
                try:
                    spoilt = damaged(source, made, BUILD / "spoilt", damage, strength)
                except NotHere:
                    break
                try:
                    row |= _figures(compare(source, spoilt, tokens=tokens, plan=plan))
                except BadInput as error:
                    row |= REFUSED | {"reasons": [str(error)[:200]]}
                seen = f"size {row['size']}, {row['verdict']} {row['seen_by']}"
                _say(f"{label}, {damage.name} {strength:g}: {seen}")
                yield _keep(row)


def _figures(evidence: Evidence) -> Figures:
    floor, wide = evidence.floor, evidence.wide
    known = floor is not None and wide is not None and wide.divergence == wide.divergence
    failed = [check.reason for check in evidence.checks if not check.passed]
    ran = bool(failed) or wide is None or any("lacks weights" in reason for reason in evidence.reasons)
    files = any(reason not in failed and "lacks weights" not in reason for reason in evidence.reasons)
    return {
        "verdict": evidence.verdict.value,
        "seen_by": [name for name, saw in (("runs", ran), ("files", files)) if saw],
        "failed": [check.name for check in evidence.checks if not check.passed],
        "reasons": list(evidence.reasons)[:2],
        "size": float(f"{wide.divergence / floor.divergence:.3g}") if known and wide and floor else None,
        "shares": {
            check.name: float(f"{check.value / check.limit:.2g}")
            for check in evidence.checks
            if check.limit > 0 and check.value == check.value and check.limit == check.limit
        },
        "seconds": evidence.settings["seconds"],
        "passes": evidence.settings["passes"],
    }


def _convert(source: Path, out: Path) -> Plan:
    """A FlashNorm conversion, with as much of a manifest as tells which trick it was."""
    shutil.rmtree(out, ignore_errors=True)
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    convert(plan, source, out)
    (out / "conversion.json").write_text(json.dumps({"recipe": ["flashnorm"]}))
    return plan


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _summary(clean: list[Figures], harmed: list[Figures]) -> Figures:
    alarms = [row for row in clean if row["verdict"] != Verdict.EQUIVALENT]
    missed = [row for row in harmed if row["verdict"] not in CAUGHT]
    unseen = [row for row in harmed if not {"runs", "loading"} & set(row["seen_by"])]
    beyond = [row for row in missed if row["size"] is not None and row["size"] > 1]
    checks = sorted({name for row in [*clean, *harmed] for name in row["shares"]})
    return {
        "honest_conversions": len(clean),
        "architectures": len({row["type"] for row in clean}),
        "false_alarms": len(alarms),
        "damages": len(harmed),
        "kinds": len({row["damage"] for row in harmed}),
        "caught": len(harmed) - len(missed),
        "missed_beyond_the_floor": len(beyond),
        "missed": _named(missed),
        "seen_by": {
            name: sum(name in row["seen_by"] for row in harmed) for name in ("files", "runs", "loading")
        },
        "missed_by_the_runs_alone": _named(unseen),
        "checks": {
            name: {
                "false_alarms": sum(name in row["failed"] for row in clean),
                "caught": sum(name in row["failed"] for row in harmed),
                "largest_share_of_its_limit_when_honest": max(
                    (row["shares"][name] for row in clean if name in row["shares"]), default=None
                ),
            }
            for name in checks
        },
        "targets_met": not alarms and not beyond,
    }


def _named(rows: list[Figures]) -> list[Figures]:
    return [{key: row[key] for key in ("model", "damage", "strength", "size")} for row in rows]


def _print(result: Figures) -> None:
    print(f"honest conversions: {result['honest_conversions']} of {result['architectures']} architectures")
    print(f"  false alarms: {result['false_alarms']}")
    print(f"damages: {result['damages']} of {result['kinds']} kinds, caught: {result['caught']}")
    print(f"  missed beyond the source's noise: {result['missed_beyond_the_floor']}")
    for row in result["missed"]:
        print(f"  missed: {row['model']}: {row['damage']}, {row['strength']:g}: {row['size']} of the noise")
    print(f"  seen by: {result['seen_by']}")
    for row in result["missed_by_the_runs_alone"]:
        print(
            f"  files alone: {row['model']}: {row['damage']}, {row['strength']:g}: {row['size']} of the noise"
        )
    for name, row in result["checks"].items():
        print(f"  {name}: {row}")


def _draw(harmed: list[Figures]) -> None:
    """Every damage by its size; filled where the runs saw it, hollow where only the files did."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["damage"] for row in harmed))
    figure = Figure(figsize=(9, 0.3 * len(kinds) + 1), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for row in harmed:
        if row["size"]:
            caught, ran = row["verdict"] in CAUGHT, "runs" in row["seen_by"]
            axes.scatter(
                row["size"],
                kinds.index(row["damage"]),
                s=24,
                facecolors="C0" if ran else "none",
                edgecolors="C0" if caught else "C3",
            )
    axes.axvline(1, color="0.5", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="divergence over the source's own rounding noise (filled: seen by running)")
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.invert_yaxis()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Software": None})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
