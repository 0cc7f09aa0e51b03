"""What `tricksmith doctor` does."""

from __future__ import annotations

import argparse

from service.doctor import Level, examine
from service.settings import Settings
from ui.answer import answering
from ui.cli import DONE, NO
from ui.text import one_line

_MARKS = {Level.GOOD: "✓", Level.NOTE: "•", Level.BAD: "✗"}


def doctor(args: argparse.Namespace) -> int:
    """Look at this deployment; 1 where something is bad."""
    findings = []
    with answering(args.json) as answer:
        for finding in examine(Settings.from_env()):
            findings.append(finding)
            if not args.json:
                answer(one_line(f"{_MARKS[finding.level]} {finding.what}: {finding.text}"))
                if finding.change:
                    answer(f"  {one_line(finding.change)}")
        if args.json:
            answer([finding.to_json() for finding in findings])
    return NO if any(finding.level is Level.BAD for finding in findings) else DONE
