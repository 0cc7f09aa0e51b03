"""The console script `tricksmith`: what it understands, and how it says no.

Exit codes: 0 done, 1 the answer is no (different, rejected, cancelled), 2 the request is wrong or could not
be carried out; then one line on stderr says what and what to do. Only argparse is imported before the
command is known, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ui.cli_space import add_space
from ui.cli_watch import add_watch

DONE, NO, BAD = 0, 1, 2

_MODEL = "local folder, or Hub id with an optional @revision"
_TRICK = "NAME or NAME:option=value,option=value; may be given more than once"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each command's name is that of its function in `ui.commands`."""
    top = _Parser(
        prog="tricksmith",
        allow_abbrev=False,
        description="Applies transformer tricks to a model's weights, proves that it still is the same "
        "model, and publishes it with the proof.",
        epilog="Exit codes: 0 done, 1 the answer is no, 2 the request is wrong.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, text: str, *, json: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if json:
            command.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return command

    plan = add("plan", "show what the tricks would change and save, before any weight is downloaded")
    plan.add_argument("model", metavar="MODEL", help=_MODEL)
    plan.add_argument(
        "--trick", action="append", default=[], metavar="T", help=f"{_TRICK}; every trick if none"
    )

    convert = add("convert", "convert in this process, without a queue; the result is not yet verified")
    convert.add_argument("model", metavar="MODEL", help=_MODEL)
    convert.add_argument("out", metavar="OUT", help="the folder to write; must not exist")
    convert.add_argument("--trick", action="append", required=True, metavar="T", help=_TRICK)
    convert.add_argument(
        "--recipe", metavar="R", help="verify it too, right away: quick, standard, full, or a YAML file"
    )

    verify = add("verify", "compare a source and a converted model; exit 1 when they differ")
    verify.add_argument("source", metavar="SOURCE", help=_MODEL)
    verify.add_argument("converted", metavar="CONVERTED", help="the folder of the converted model")
    _add_evidence(verify)
    verify.add_argument("--tokens", type=_positive, metavar="N", help="how many tokens of the text to score")
    verify.add_argument("--window", type=_positive, metavar="N", help="tokens of a window, at most")
    verify.add_argument("--cut", metavar="HOW", help="sliding (default), rolling (as lm-eval) or chunks")
    verify.add_argument("--limit", type=_positive, metavar="N", help="documents of each task, at most")
    verify.add_argument("--fewshot", type=_count, metavar="N", help="examples in front of each document")
    verify.add_argument(
        "--chat-template", action="store_true", default=None, help="ask through the chat template"
    )
    verify.add_argument("--batch", type=_positive, metavar="N", help="rows of a forward pass, at most")
    verify.add_argument(
        "--margin", type=float, metavar="X", help="the difference of a score that still counts as the same"
    )
    verify.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="WHAT=X",
        help="what an approximate conversion may differ by: kl, top1, perplexity",
    )
    verify.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    verify.add_argument("--report", metavar="FILE", help="write a page that stands alone, with pictures")

    submit = add("submit", "queue a job: convert, verify, publish")
    submit.add_argument("model", metavar="MODEL", help=_MODEL)
    submit.add_argument("--trick", action="append", required=True, metavar="T", help=_TRICK)
    submit.add_argument(
        "--to",
        metavar="DEST",
        help="NAMESPACE/NAME on the Hub, or a folder; a new repo of yours, named after the model, if none",
    )
    submit.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    submit.add_argument("--private", action="store_true", help="make the Hub repo private")
    _add_evidence(submit)
    submit.add_argument(
        "--wait", action="store_true", help="stay until the job has finished, and show its progress"
    )

    jobs = add("jobs", "list the latest jobs")
    jobs.add_argument("--limit", type=_positive, default=50, metavar="N", help="how many (default 50)")

    for name, text in (
        ("status", "show one job"),
        ("cancel", "ask a job to stop"),
        ("retry", "queue a failed or cancelled job again"),
    ):
        add(name, text).add_argument("id", metavar="ID", help="a job's id, as `tricksmith jobs` shows it")

    inspect = add("inspect", "tell what was done to a converted model")
    inspect.add_argument("where", metavar="WHERE", help=f"the converted model: {_MODEL}")

    reproduce = add("reproduce", "convert again as a manifest says and compare bit for bit; exit 1 when not")
    reproduce.add_argument("where", metavar="WHERE", help=f"the converted model: {_MODEL}")
    reproduce.add_argument("--source", metavar="MODEL", help="the source, where the manifest names a folder")

    add_watch(add("watch", "convert new releases by themselves", json=False), _Parser)

    serve = add("serve", "run the web page, the queue and a worker", json=False)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument("--port", type=_port, default=7860, help="port to listen on (default %(default)s)")
    serve.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="worker processes (default 1, 0 for none)"
    )

    add_space(add("space", "put Tricksmith on a Hub Space", json=False), _Parser)

    add("doctor", "look at this deployment (Redis, disk, GPU, token, clocks), and say what to change")

    worker = add(
        "worker", "run one worker on the queue that REDIS_URL, or the data folder, names", json=False
    )
    worker.add_argument(
        "--queue", action="append", default=[], choices=("cpu", "gpu"), help="cpu or gpu; both if none"
    )
    return top


def _add_evidence(command: argparse.ArgumentParser) -> None:
    """What is measured, for commands here and for jobs alike."""
    command.add_argument(
        "--recipe", default="quick", metavar="R", help="quick (default), standard, full, or a YAML file"
    )
    command.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="an lm-eval task, instead of the recipe's"
    )
    command.add_argument(
        "--text", metavar="TEXT", help="a text file, a table (FILE#COLUMN) or data set, or wikitext-2"
    )
    command.add_argument(
        "--max-memory", metavar="SIZE", help="the most memory to hold: 8GiB, or cuda=20GiB,cpu=8GiB"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes from 0 to 256")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = parser().parse_args(argv)

    def run() -> int:
        from ui import commands

        return commands.COMMANDS[args.command](args)

    return guarded(run)


def guarded(run: Callable[[], int]) -> int:
    """Call `run`; whatever it raises becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Nothing is sent home unasked.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (`| head`): not an error, but Python's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except KeyboardInterrupt:
        return _say("interrupted; nothing that looks finished was left behind", 130)
    except Exception as error:
        if os.environ.get("TRICKSMITH_DEBUG"):
            raise
        return _say(_explain(error), BAD)


def _explain(error: Exception) -> str:
    from tricks.errors import TricksmithError

    if isinstance(error, TricksmithError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}; put that right and try again"
    return f"internal error: {type(error).__name__}: {error}; set TRICKSMITH_DEBUG=1 to see where"


def _say(text: str, code: int) -> int:
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    print(f"tricksmith: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
