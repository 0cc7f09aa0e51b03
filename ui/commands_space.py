"""What `tricksmith space deploy` does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from service.space_files import secrets_of
from service.space_setup import Setup
from service.spaces import Wish, write_folder
from service.spaces import deploy as put
from tricks import BadInput
from ui.answer import answering
from ui.cli import DONE
from ui.text import one_line

_NEEDS = "needs these secrets there"


def deploy(args: argparse.Namespace) -> int:
    """Deploy, or write the folder; says what was done and what is to be done by hand."""
    redis = args.remote_redis
    if redis == "" and not (redis := os.environ.get("REDIS_URL", "")):
        raise BadInput("no Redis is named; give --remote-redis a URL, or set REDIS_URL")
    wish = Wish(args.space, args.hardware, args.storage, redis, args.private)
    with answering(args.json) as answer:
        if args.dry_run is not None:
            folder = Path(args.dry_run)
            setup = write_folder(wish, folder)
            if args.json:
                answer({"folder": str(folder), "setup": vars(setup), "secrets": secrets_of(setup)})
            else:
                answer(f"{args.space} would be {one_line(str(folder))}; it {_NEEDS}: {_secrets(setup)}")
            return DONE
        made = put(wish)
        if args.json:
            answer(made.to_json())
        else:
            for line in made.done or ("nothing to change",):
                answer(f"✓ {one_line(line)}")
            answer(f"{made.url} ({made.setup.hardware}, history: {made.setup.history})")
    return DONE


def _secrets(setup: Setup) -> str:
    return ", ".join(secrets_of(setup))
