"""What `tricksmith space` understands."""

from __future__ import annotations

import argparse


def add_space(space: argparse.ArgumentParser, kind: type[argparse.ArgumentParser]) -> None:
    """Give the command `space` its actions."""
    actions = space.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=kind)
    text = "make a Space that runs Tricksmith, or bring one up to date that this command made"
    deploy = actions.add_parser(
        "deploy", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    deploy.add_argument("space", metavar="NAMESPACE/NAME", help="the Space; its page will be there")
    deploy.add_argument(
        "--hardware",
        metavar="H",
        help="cpu-basic (default), zero-a10g, t4-small or any other flavour of the Hub",
    )
    deploy.add_argument(
        "--storage",
        metavar="S",
        help="where the list of jobs lasts: bucket (default), dataset or none; "
        "bucket:NAMESPACE/NAME names one",
    )
    deploy.add_argument(
        "--remote-redis",
        nargs="?",
        const="",
        metavar="URL",
        help="a face alone: jobs go to this Redis, where workers of yours take them; $REDIS_URL if no URL",
    )
    deploy.add_argument("--private", action="store_true", help="make a new Space private")
    deploy.add_argument(
        "--dry-run", metavar="FOLDER", help="write what would be deployed into this new folder, ask no Hub"
    )
    deploy.add_argument("--json", action="store_true", help="print one JSON document on stdout")
