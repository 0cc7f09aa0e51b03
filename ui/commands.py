"""What each command does; `ui.cli` has parsed its arguments. Each returns the exit code."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.api import Service
from service.jobs import Job, State
from service.licences import forbids_derivatives
from service.settings import Settings
from service.source import Source
from tricks import BadInput, Plan
from ui.answer import answering
from ui.cli import BAD, DONE, NO
from ui.commands_made import inspect, reproduce
from ui.commands_watch import watch
from ui.follow import follow
from ui.preflight import preflight_lines
from ui.progress import Progress, note
from ui.stack import are_starting, await_workers, has_workers, processes, queue_service
from ui.text import ago, count, duration, evidence_text, group_places, one_line, proof_line, savings_rows

if TYPE_CHECKING:  # evals brings torch
    from evals import Evidence, Recipe


def plan(args: argparse.Namespace) -> int:
    """Show a plan, and what else can be known before any weight is downloaded."""
    with answering(args.json) as answer:
        seen = Service(Settings.from_env()).preflight(args.model, args.trick)
        if args.json:
            answer(seen.plan.to_json() | {"preflight": seen.to_json()})
        else:
            answer("\n".join([_plan_text(seen.plan), *preflight_lines(seen)]))
    return DONE


def convert(args: argparse.Namespace) -> int:
    """Convert in this process; with --recipe verify too."""
    progress = Progress(sys.stderr)
    with answering(args.json) as answer:
        out = Path(args.out)
        recipe = None if args.recipe is None else _recipe(args.recipe)
        try:
            made, conversion = Service(Settings.from_env()).convert(
                args.model, out, args.trick, progress.within("convert")
            )
        except BaseException:
            progress.end("✕")
            raise
        progress.end()
        evidence = None if recipe is None else _measure(args.model, str(out), recipe=recipe)
        if args.json:
            moved = {"bytes_read": conversion.bytes_read, "bytes_written": conversion.bytes_written}
            measured = {} if evidence is None else {"evidence": evidence.to_json()}
            answer({"out": str(out), "plan": made.to_json(), "files": conversion.files, **moved, **measured})
        else:
            fitting = sum(place.fits for place in made.places)
            answer(
                f"{count(fitting, 'place')} changed, {count(len(conversion.files), 'file')} written to {out}"
            )
            again = f"Not verified yet: tricksmith verify {one_line(args.model)} {one_line(str(out))}"
            answer(again if evidence is None else evidence_text(evidence))
    return DONE if evidence is None or evidence.verdict.publishable else NO


def _recipe(name: str) -> Recipe:
    from evals import load_recipe

    return load_recipe(name)


def verify(args: argparse.Namespace) -> int:
    """Compare two models."""
    from ui.verifying import evidence_options, write_report

    with answering(args.json) as answer:
        evidence = _measure(args.source, args.converted, args.task, **evidence_options(args))
        answer(evidence.to_json() if args.json else evidence_text(evidence))
        if args.report:
            write_report(evidence, Path(args.report), args.source, args.converted)
    return DONE if evidence.verdict.publishable else NO


def _measure(source: str, converted: str, tasks: Sequence[str] = (), **options: Any) -> Evidence:
    progress = Progress(sys.stderr)
    try:
        evidence = Service(Settings.from_env()).verify(
            source,
            converted,
            tasks,
            progress.within("verify"),
            **options,
            begin=lambda seconds: note(f"about {duration(seconds)} on this machine"),
        )
    except BaseException:
        progress.end("✕")
        raise
    progress.end()
    return evidence


def submit(args: argparse.Namespace) -> int:
    """Queue a job, and with --wait follow it to its end."""
    from ui.verifying import evidence_request

    with answering(args.json) as answer, queue_service() as (service, settings):
        served = has_workers(settings)
        if not served and are_starting(settings):
            note("the workers are starting; the job waits for them")
            served = await_workers(settings) if args.wait else True
        if not served and not args.wait:
            raise BadInput(
                "no worker is running; start `tricksmith serve` in another terminal, or add --wait"
            )
        asked = evidence_request(args)
        job = service.submit(
            args.model, args.trick, args.to, pr=args.pr, private=args.private, evidence=asked
        )
        if job.evidence_asked is not None:
            note(f"the evidence takes about {duration(job.evidence_asked['seconds'])} on this machine")
        if job.source and (licence := forbids_derivatives(Source.from_json(job.source))) is not None:
            note(f"its licence ({one_line(licence)}) forbids derivatives: publish only if its owner agrees")
        if args.wait and not served:
            note("no worker is running: starting Redis and a worker for this command")
            with processes(settings):
                job = _wait(service, job)
        elif args.wait:
            job = _wait(service, job)
        evidence = service.evidence(job.id)
        if args.json:
            answer(job.to_json())
        else:
            answer(_job_text(job, evidence))
    return _code(job) if args.wait else DONE


def _wait(service: Service, job: Job) -> Job:
    try:
        return follow(service, job.id, Progress(sys.stderr))
    except KeyboardInterrupt:
        note(f"\nno longer waiting; job {job.id} is kept: tricksmith status|cancel {job.id}")
        raise


def _code(job: Job) -> int:
    return {State.PUBLISHED: DONE, State.REJECTED: NO, State.CANCELLED: NO}.get(job.state, BAD)


def jobs(args: argparse.Namespace) -> int:
    """List the latest jobs."""
    with answering(args.json) as answer, queue_service() as (service, _):
        found = service.jobs(limit=args.limit)
        if args.json:
            answer([job.to_json() for job in found])
        elif not found:
            answer("no jobs yet")
        for job in [] if args.json else found:
            what = (
                f"{job.state:<10} {job.stage or '' if job.state is State.RUNNING else job.verdict or '':<14}"
            )
            answer(one_line(f"{job.id}  {what} {ago(time.time() - job.created):<16} {job.model} → {job.to}"))
    return DONE


def status(args: argparse.Namespace) -> int:
    """Show one job."""
    with answering(args.json) as answer, queue_service() as (service, _):
        job = service.job(args.id)
        answer(job.to_json() if args.json else _job_text(job, service.evidence(job.id)))
    return DONE


def cancel(args: argparse.Namespace) -> int:
    """Ask a job to stop."""
    return _change(args, Service.cancel)


def retry(args: argparse.Namespace) -> int:
    """Queue a job again."""
    return _change(args, Service.retry)


def _change(args: argparse.Namespace, action: Callable[[Service, str], Job]) -> int:
    with answering(args.json) as answer, queue_service() as (service, _):
        job = action(service, args.id)
        answer(job.to_json() if args.json else _job_text(job, None))
    return DONE


def serve(args: argparse.Namespace) -> int:
    """Run the web page, the queue and workers until a signal comes."""
    from ui.serve import serve as run

    run(args.host, args.port, args.workers)


def worker(args: argparse.Namespace) -> int:
    """Run one worker until a signal comes."""
    from service.logs import set_up_logs
    from workers.main import run_worker

    settings = Settings.from_env()
    set_up_logs(as_json=settings.json_logs)
    return run_worker(settings, args.queue) if args.queue else run_worker(settings)


def space(args: argparse.Namespace) -> int:
    """Put Tricksmith on a Hub Space."""
    from ui.commands_space import deploy

    return deploy(args)


def doctor(args: argparse.Namespace) -> int:
    """Look at this deployment, and say what to change."""
    from ui.commands_doctor import doctor as run

    return run(args)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    function.__name__: function
    for function in (
        plan,
        convert,
        verify,
        submit,
        jobs,
        status,
        cancel,
        retry,
        inspect,
        reproduce,
        watch,
        serve,
        worker,
        space,
        doctor,
    )
}


def _plan_text(made: Plan) -> str:
    groups = group_places(made.places)
    fitting = sum(group.size for group in groups if group.fits)
    kind = "lossless" if made.lossless else "approximate"
    lines = [
        one_line(f"{made.model} ({made.architecture}): {', '.join(map(str, made.tricks))}, {kind}"),
        f"{fitting:,} of {count(len(made.places), 'place')} will change; {proof_line(made)}",
        *(f"  {name}: {value}" for name, value in savings_rows(made)),
    ]
    for group in groups:
        times = f" (x{group.size})" if group.size > 1 else ""
        lines.append("")
        lines.append(one_line(f"{'✓' if group.fits else '✗'} {group.trick}  {group.where}{times}"))
        lines.append(f"  {one_line(group.detail)}")
    return "\n".join(lines)


def _job_text(job: Job, evidence: Evidence | None) -> str:
    stage = f", {job.stage}" if job.stage and not job.state.final else ""
    lines = [
        f"Job {job.id}: {job.state}{stage}",
        f"  {one_line(job.model)} → {one_line(job.to)}, {', '.join(job.tricks)}",
    ]
    if job.started and job.finished:
        lines.append(f"  took {duration(job.finished - job.started)}")
    if job.reason:
        lines.append(f"  {one_line(job.reason)}")
    if evidence:
        lines.append(evidence_text(evidence))
    if job.result:
        lines.append(f"Published: {one_line(job.result)}")
    return "\n".join(lines)
