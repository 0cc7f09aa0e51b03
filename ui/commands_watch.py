"""What each action of `tricksmith watch` does."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from service.api import Service
from service.deciding import Decision
from service.naming import destination
from service.publish import is_folder
from service.rights import check_rights
from service.watches import Kind, Watch, new_watch
from tricks import BadInput
from ui.answer import answering
from ui.cli import DONE
from ui.stack import queue_service
from ui.text import ago, count, one_line


def watch(args: argparse.Namespace) -> int:
    """Carry out the action."""
    with answering(args.json) as answer, queue_service() as (service, _):
        data, lines = _ACTIONS[args.action](service, args)
        answer(data if args.json else lines)
    return DONE


_Said = tuple[Any, str]


def _add(service: Service, args: argparse.Namespace) -> _Said:
    kind = next(kind for kind in Kind if getattr(args, kind.value) is not None)
    given: dict[str, Any] = {name: getattr(args, name) for name in ("private", "task", "library")}
    given |= {name: getattr(args, name) for name in ("allow", "deny", "per_poll", "per_day")}
    given |= {"tags": args.tag, "min_downloads": args.min_downloads}
    given |= {"min_age": args.min_age, "max_age": args.max_age}
    given |= {"every": args.every * 60}
    if args.revisions:
        given["revisions"] = True
    made = new_watch(kind, getattr(args, kind.value), args.trick, args.to, **given)
    to = destination(made.to, "owner/Model", made.tricks)
    if not is_folder(to):
        check_rights(to, None, pr=False)
    service.watches.add(made)
    look = f"see what it would do: tricksmith watch run --dry-run {made.id}"
    return _shown(service, made), f"Watch {made.id}: {_line(service, made)}\n{look}"


def _list(service: Service, args: argparse.Namespace) -> _Said:
    found = service.watches.all()
    lines = [f"{watch.id}  {_line(service, watch)}" for watch in found] or ["no watches yet"]
    return [_shown(service, watch) for watch in found], "\n".join(lines)


def _remove(service: Service, args: argparse.Namespace) -> _Said:
    former = service.watches.get(args.id)
    service.watches.remove(args.id)
    return former.to_json(), f"{former.name} is no longer watched; its jobs stay"


def _pause(service: Service, args: argparse.Namespace) -> _Said:
    former = service.watches.get(args.id)
    service.watches.set_state(args.id, paused="by hand", until=None)
    return _shown(service, former), f"Watch {former.id}: {_line(service, former)}"


def _resume(service: Service, args: argparse.Namespace) -> _Said:
    former = service.watches.get(args.id)
    service.watches.set_state(
        args.id, paused=None, until=None, failures=None, error=None, resumed=time.time()
    )
    return _shown(service, former), f"Watch {former.id}: {_line(service, former)}"


def _history(service: Service, args: argparse.Namespace) -> _Said:
    found = service.watches.history(args.id, args.limit)
    now = time.time()
    lines = [
        one_line(
            f"{ago(now - told['at']):<16} {told['outcome']:<8} {told['model']}"
            + (f": {told['reason']}" if "reason" in told else f" → {told['to']}, job {told['job']}")
        )
        for told in found
    ]
    return found, "\n".join(lines) or "nothing decided yet"


def _run(service: Service, args: argparse.Namespace) -> _Said:
    store = service.watches
    if args.id:
        chosen = [store.get(args.id)]
        why = store.paused(args.id)
        if why and not args.dry_run:
            raise BadInput(f"watch {args.id} is paused ({why}); tricksmith watch resume {args.id}")
    else:
        chosen = [one for one in store.all() if store.paused(one.id) is None]
    told: list[dict[str, Any]] = []
    lines: list[str] = []
    for one in chosen:
        try:
            decisions = service.watching.poll(one, dry_run=args.dry_run)
        except BadInput as error:
            if args.id:
                raise
            told.append({"watch": one.id, "error": str(error)})
            lines.append(f"Watch {one.id}, {one_line(one.name)}: {one_line(str(error))}")
            continue
        told.append({"watch": one.id, "decisions": [decision.to_json() for decision in decisions]})
        lines.append(f"Watch {one.id}, {one_line(one.name)}: {count(len(decisions), 'model')}")
        lines += [_decided(decision, dry=args.dry_run) for decision in decisions]
    return told, "\n".join(lines) or "no watches that are not paused"


def _decided(decision: Decision, *, dry: bool) -> str:
    if decision.outcome == "queued":
        what = "would be queued" if dry else f"queued as job {decision.job}"
        return one_line(f"  ✓ {decision.model}: {what} → {decision.to}")
    return one_line(f"  · {decision.model}: {decision.outcome}: {decision.reason}")


def _line(service: Service, watch: Watch) -> str:
    state = service.watches.state(watch.id)
    why = service.watches.paused(watch.id)
    rests = f"; paused: {why}" if why else ""
    failed = f"; the last look failed: {state['error']}" if state.get("error") and not rests else ""
    polled = f"; looked at {ago(time.time() - state['polled'])}" if state.get("polled") else ""
    what = f"{watch.name} → {watch.to}, {', '.join(watch.tricks)}, every {watch.every / 60:g} min"
    return one_line(what + "".join(f", {told}" for told in _filters(watch)) + polled + failed + rests)


def _filters(watch: Watch) -> list[str]:
    """What narrows a watch, in the words of its options."""
    days = {"min-age": watch.min_age, "max-age": watch.max_age}
    listed = {"allow": watch.allow, "deny": watch.deny, "tag": watch.tags}
    told = [f"{name} {' '.join(values)}" for name, values in listed.items() if values]
    told += [f"task {watch.task}"] if watch.task else []
    told += [f"library {watch.library}"] if watch.library else []
    told += [f"min-downloads {watch.min_downloads}"] if watch.min_downloads else []
    told += [f"{name} {value:g} days" for name, value in days.items() if value]
    return told + (["private"] if watch.private else [])


def _shown(service: Service, watch: Watch) -> dict[str, Any]:
    return watch.to_json() | {"state": service.watches.state(watch.id)}


_ACTIONS: dict[str, Callable[[Service, argparse.Namespace], _Said]] = {
    "add": _add,
    "list": _list,
    "remove": _remove,
    "pause": _pause,
    "resume": _resume,
    "history": _history,
    "run": _run,
}
