"""`tricksmith inspect` and `reproduce`: what was done to a converted model, and doing it again."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from service.api import Service
from service.inspection import Inspection
from service.reproduction import Reproduction
from service.settings import Settings
from ui.answer import answering
from ui.cli import DONE, NO
from ui.progress import Progress
from ui.text import count, one_line


def inspect(args: argparse.Namespace) -> int:
    """Tell what was done to a converted model."""
    with answering(args.json) as answer:
        found = Service(Settings.from_env()).inspect(args.where)
        answer(found.to_json() if args.json else _inspected(found))
    return DONE


def reproduce(args: argparse.Namespace) -> int:
    """Convert again and compare."""
    progress = Progress(sys.stderr)
    with answering(args.json) as answer:
        try:
            made = Service(Settings.from_env()).reproduce(
                args.where, args.source, progress.within("reproduce")
            )
        except BaseException:
            progress.end("✕")
            raise
        progress.end()
        answer(made.to_json() if args.json else _reproduced(made))
    return DONE if made.same else NO


def _inspected(found: Inspection) -> str:
    manifest: dict[str, Any] = found.manifest
    verdict = (found.evidence or {}).get("verdict", "none: it was not compared with its source")
    follows = manifest.get("follows") or {}
    lines = [
        f"{found.where}: {', '.join(manifest['recipe'])} of {manifest['source'].get('id')}",
        f"  source commit  {manifest['source'].get('commit') or 'none (a local folder)'}",
        f"  verdict        {verdict}",
        f"  made           {manifest.get('created')} with {_tools(manifest)}",
        f"  files          {count(len(manifest['files']), 'file')} written,"
        f" {len(manifest['source']['files'])} read, each with its SHA-256",
        f"  manifest       {found.digest}",
    ]
    if follows:
        lines.append(f"  follows        {follows.get('manifest')}, made of commit {follows.get('source')}")
    return "\n".join(one_line(line) for line in lines)


def _tools(manifest: dict[str, Any]) -> str:
    tools = {"tricksmith": manifest["tool"].get("version"), **(manifest.get("versions") or {})}
    return ", ".join(f"{name} {number}" for name, number in tools.items() if number)


def _reproduced(made: Reproduction) -> str:
    if made.same:
        return f"the same, bit for bit: {count(made.files, 'file')}"
    lines = [f"not the same: {len(made.differing)} of {count(made.files, 'file')} differ"]
    lines += [f"  {name}" for name in made.differing]
    lines += [f"  {name} was {then}, is {now}" for name, (then, now) in made.versions.items()]
    return "\n".join(one_line(line) for line in lines)
