"""What `tricksmith watch` understands."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_watch(watch: argparse.ArgumentParser, kind: type[argparse.ArgumentParser]) -> None:
    """Give the command `watch` its actions."""
    actions = watch.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=kind)

    def action(name: str, text: str, *, one: bool = False) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
        made.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        if one:
            made.add_argument("id", metavar="ID", help="a watch's id, as `tricksmith watch list` shows it")
        return made

    _add_rule(action("add", "convert new releases by themselves"))
    action("list", "list the watches")
    action("remove", "forget a watch; its jobs stay", one=True)
    action("pause", "let a watch rest", one=True)
    action("resume", "wake a watch that rests or paused itself", one=True)
    history = action("history", "show what a watch decided, newest first", one=True)
    history.add_argument("--limit", type=_from(int, 1), default=50, metavar="N", help="how many (default 50)")
    run = action("run", "look at the watches now, whether their time has come or not")
    run.add_argument("id", nargs="?", metavar="ID", help="the watch to look at; all if none")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="queue nothing; tell what would be queued, and why not the rest",
    )


def _add_rule(add: argparse.ArgumentParser) -> None:
    what = add.add_mutually_exclusive_group(required=True)
    what.add_argument("--author", metavar="NAME", help="every new model of a user or organisation")
    what.add_argument("--model", metavar="ID", help="every new revision of org/name, or of org/name@branch")
    what.add_argument("--collection", metavar="SLUG", help="every model that is in a collection")
    what.add_argument("--search", metavar="WORDS", help="every new model whose name holds the words")
    add.add_argument("--trick", action="append", required=True, metavar="T", help="as for submit")
    add.add_argument(
        "--to",
        required=True,
        metavar="DEST",
        help="a NAMESPACE or folder for all (named Model-FlashNorm and the like), or a pattern with {name}",
    )
    add.add_argument("--private", action="store_true", help="make the Hub repos private")
    add.add_argument("--revisions", action="store_true", help="convert changed models again")
    for name, text in (
        ("allow", "only models whose id fits, such as org/*-Instruct; may be given more than once"),
        ("deny", "no model whose id fits; may be given more than once"),
        ("tag", "only models with this tag; may be given more than once"),
    ):
        add.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=text)
    add.add_argument("--task", metavar="TASK", help="only models for this task, such as text-generation")
    add.add_argument("--library", metavar="NAME", help="only models for this library, such as transformers")
    add.add_argument(
        "--min-downloads", type=_from(int, 0), default=0, metavar="N", help="only models downloaded so often"
    )
    add.add_argument(
        "--min-age", type=_from(float, 0), default=0.0, metavar="DAYS", help="only models that are so old"
    )
    add.add_argument(
        "--max-age",
        type=_from(float, 0),
        default=0.0,
        metavar="DAYS",
        help="of how many days back what is there already is taken too (default 0)",
    )
    add.add_argument("--per-poll", type=_from(int, 1), default=5, metavar="N", help="jobs per look (5)")
    add.add_argument("--per-day", type=_from(int, 1), default=20, metavar="N", help="jobs per day (20)")
    add.add_argument(
        "--every",
        type=_from(float, 1),
        default=15.0,
        metavar="MINUTES",
        help="how often to look (15)",
    )


def _from(kind: type[int] | type[float], least: int) -> Callable[[str], float]:
    """A number from `least` on."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return value

    return read
