"""`make chaos`: every fault in every stage, on a real deployment, with small real models.

At the end every accepted job must be published exactly once, rejected, failed for a reason that its fault
explains, or cancelled. Prints a table of faults and stages with counts, and the seed; exits with 1 where
anything else happened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom

from benchmarks.chaos.cluster import Cluster, last_words
from benchmarks.chaos.faults import FAULTS, Fault
from service.jobs import Job, Stage, State
from tests.hub_models import small_llama

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"
WITH_CHILD = frozenset({Stage.PLAN, Stage.CONVERT, Stage.VERIFY})
DONE_WITHIN = 120.0  # seconds for the jobs of one cell, faults and all
MOST_TRIES = 5
SOURCE = "forge/small"


@dataclass
class Cell:
    """What became of the jobs of one fault in one stage."""

    fault: str
    stage: str
    jobs: int = 0
    struck: int = 0
    """How often a job was seen in the stage in the very moment before the fault."""
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Chaos:
    """One run: submits, strikes, waits, checks."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = Random(seed)
        self._made = 0
        self._accepted: dict[str, str] = {}  # job -> destination

    def cell(self, fault: Fault, stage: Stage, jobs: int, rounds: int) -> Cell:
        """Strike `rounds` times while a job of host A is in `stage`, with `jobs` jobs under way each time."""
        cell = Cell(fault.name, stage.value)
        started = time.monotonic()
        for _ in range(rounds):
            self._cluster.wait_for_a()
            ids = [self._submit() for _ in range(jobs)]
            for _ in range(MOST_TRIES):  # until host A has got a job, and we see it in this stage
                if self._reach(stage, ids, fault.needs_child):
                    break
                ids += [self._submit() for _ in range(jobs)]
            time.sleep(self._random.uniform(0.0, 0.003))
            cell.struck += self._is_in(stage, fault.needs_child)
            with fault.strike(self._cluster, self._random):
                if self._random.random() < 0.1:
                    self._cluster.service.cancel(self._random.choice(ids))
            self._settle(cell, fault, ids)
        cell.seconds = round(time.monotonic() - started, 1)
        return cell

    def kill_web(self, jobs: int, rounds: int) -> Cell:
        """Kill the process that submits while it submits: what it had accepted must be done."""
        cell = Cell("kill -9 web", "submit")
        fault = Fault("kill -9 web", lambda cluster, random: None)
        started = time.monotonic()
        for _ in range(rounds):
            before = {job.id for job in self._cluster.store.latest(100_000)}
            destinations = [self._destination() for _ in range(jobs)]
            with subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos.web"],
                env=self._cluster.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as web:
                assert web.stdin is not None
                assert web.stdout is not None
                for to in destinations:
                    web.stdin.write(f"{SOURCE} {to}\n")
                web.stdin.flush()
                told = [web.stdout.readline().strip() for _ in range(self._random.randint(1, jobs - 1))]
                time.sleep(self._random.uniform(0.0, 0.05))
                web.kill()
                told += web.stdout.read().split()
            made = [job for job in self._cluster.store.latest(100_000) if job.id not in before]
            cell.struck += len(told) < jobs
            lost = set(told) - {job.id for job in made}
            cell.wrong += [f"{job_id} was accepted and is gone" for job_id in sorted(lost)]
            self._accepted |= {job.id: job.to for job in made}
            self._settle(cell, fault, [job.id for job in made])
        cell.seconds = round(time.monotonic() - started, 1)
        return cell

    def leftovers(self) -> list[str]:
        """What should not be there when all is done."""
        cluster = self._cluster
        found = [f"{job_id} runs still" for job_id in cluster.store.running()]
        if cluster.store.waiting():
            found.append(f"{cluster.store.waiting()} jobs wait still")
        gone = set(self._accepted) - {job.id for job in cluster.store.latest(100_000)}
        found += [f"{job_id} was accepted and is gone" for job_id in sorted(gone)]
        found += [
            f"host {host.name}: {len(host.children())} children"
            for host in (cluster.a, cluster.b)
            if host.children()
        ]
        return found

    def _submit(self) -> str:
        to = self._destination()
        deadline = time.monotonic() + 30
        while True:
            try:
                job = self._cluster.service.submit(SOURCE, ["flashnorm"], to)
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self._accepted[job.id] = to
        return job.id

    def _destination(self) -> str:
        self._made += 1
        return f"smith/out-{self._made}"

    def _running(self) -> list[Job]:
        try:
            return [self._cluster.store.get(job_id) for job_id in self._cluster.store.running()]
        except Exception:  # noqa: BLE001 (Redis is what was struck)
            return []

    def _here(self, job: Job) -> bool:
        return (job.worker or "").startswith("a-")

    def _is_in(self, stage: Stage, needs_child: bool) -> bool:
        """Whether a job of host A is in the stage now."""
        return any(self._here(job) and job.stage is stage for job in self._running()) and (
            not needs_child or bool(self._cluster.a.children())
        )

    def _reach(self, stage: Stage, ids: Sequence[str], needs_child: bool) -> bool:
        """Wait until a job of host A is in the stage; False where all were done before that was seen."""
        deadline = time.monotonic() + DONE_WITHIN
        while time.monotonic() < deadline:
            if self._is_in(stage, needs_child):
                return True
            if not self._cluster.store.running() and not self._cluster.store.waiting():
                return False
        return False

    def _settle(self, cell: Cell, fault: Fault, ids: Sequence[str]) -> None:
        deadline = time.monotonic() + DONE_WITHIN
        waiting = list(ids)
        while waiting and time.monotonic() < deadline:
            waiting = [job_id for job_id in waiting if not self._cluster.store.get(job_id).state.final]
            time.sleep(0.1)
        for job_id in ids:
            job = self._cluster.store.get(job_id)
            cell.jobs += 1
            cell.outcomes[job.state.value] += 1
            if job.state is State.FAILED:
                cell.causes[job.cause or "?"] += 1
            if (wrong := self._wrong(job, fault)) is not None:
                cell.wrong.append(f"{job.id}: {wrong}")

    def _wrong(self, job: Job, fault: Fault) -> str | None:
        """What is wrong with how a job ended, or None."""
        repo = self._cluster.hub.repos.get(job.to)
        commits = 0 if repo is None else sum("Tricksmith" in commit.title for commit in repo.commits)
        whole = repo is not None and {"README.md", "conversion.json", "model.safetensors"} <= set(repo.files)
        if not job.state.final:
            return f"still {job.state.value} in {job.stage}"
        if job.state is State.PUBLISHED:
            return None if commits == 1 and whole and not repo.private else f"published {commits} times"
        if commits and repo is not None and not repo.private:
            return f"{job.state.value}, and yet published"
        if job.state is State.FAILED and (not job.reason or job.cause not in fault.causes):
            return f"failed for {job.cause}: {job.reason}"
        return None


def table(cells: Sequence[Cell]) -> str:
    """Faults down, stages across: jobs published / cancelled / failed, and how often the stage was struck."""
    known = [*(stage.value for stage in Stage), "submit"]
    stages = sorted({cell.stage for cell in cells}, key=known.index)
    found = {(cell.fault, cell.stage): cell for cell in cells}
    lines = ["| fault | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
    for name in dict.fromkeys(cell.fault for cell in cells):
        row = []
        for stage in stages:
            cell = found.get((name, stage))
            row.append("" if cell is None else _short(cell))
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _short(cell: Cell) -> str:
    ends = "/".join(str(cell.outcomes[state]) for state in (State.PUBLISHED, State.CANCELLED, State.FAILED))
    return f"{ends} ({cell.struck}){' WRONG' if cell.wrong else ''}"


def _figures(cell: Cell) -> str:
    shown = ", ".join(f"{count} {state}" for state, count in sorted(cell.outcomes.items()))
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(cell.causes.items()))
    return f"{shown}{f' ({causes})' if causes else ''}; hit {cell.struck}{' WRONG' if cell.wrong else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="what chance is drawn from (default: any)")
    parser.add_argument("--rounds", type=int, default=2, help="strikes per fault and stage")
    parser.add_argument("--jobs", type=int, default=4, help="jobs under way at each strike")
    parser.add_argument("--fault", action="append", default=[], help="only faults with this in their name")
    parser.add_argument("--stage", action="append", default=[], choices=[stage.value for stage in Stage])
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    parser.add_argument("--no-results", action="store_true", help=f"leave {RESULTS.name} as it is")
    options = parser.parse_args(argv)
    seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="tricksmith-chaos-"))
    started = time.monotonic()
    faults = [fault for fault in FAULTS if _chosen(fault.name, options.fault)]
    stages = [stage for stage in Stage if not options.stage or stage.value in options.stage]
    cells: list[Cell] = []
    with Cluster(folder) as cluster:
        cluster.hub.add_model(SOURCE, small_llama(folder / "model"))
        chaos = Chaos(cluster, seed)
        pairs = [(fault, stage) for fault in faults for stage in stages]
        for fault, stage in pairs:
            if (fault.needs_child and stage not in WITH_CHILD) or (
                fault.name == "disk full" and not cluster.small_disk
            ):
                continue
            cells.append(chaos.cell(fault, stage, options.jobs, options.rounds))
            _tell(cells[-1])
        if _chosen("kill -9 web", options.fault):
            cells.append(chaos.kill_web(options.jobs + 2, options.rounds))
            _tell(cells[-1])
        left = chaos.leftovers()
    wrong = [line for cell in cells for line in cell.wrong] + left
    print("\n" + table(cells))
    total = sum(cell.jobs for cell in cells)
    print(f"\n{total} jobs, {len(wrong)} wrong, {time.monotonic() - started:.0f} s, seed {seed}")
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong or options.keep:
        print(f"logs: {folder}")
        print(last_words(folder / "a.log"))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.no_results:
        RESULTS.parent.mkdir(exist_ok=True)
        document = {"seed": seed, "jobs": total, "wrong": wrong, "cells": [vars(cell) for cell in cells]}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if wrong else 0


def _tell(cell: Cell) -> None:
    print(f"{cell.fault:16} {cell.stage:8} {_figures(cell)}  {cell.seconds} s", flush=True)
    for line in cell.wrong:
        print(f"    WRONG: {line}", flush=True)


def _chosen(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


if __name__ == "__main__":
    sys.exit(main())
