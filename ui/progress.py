"""Progress on a terminal (one line that rewrites itself) or in a log (few plain lines)."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tricks.progress import Report
from ui.text import amount, duration, rate, share

_BAR = 20
_REDRAW_S = 0.1
_PLAIN_S = 5.0


def say(text: str) -> None:
    """A line of the answer, on stdout; at once, so that a pipe sees it too."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the work, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Tells how far a stage is; usable as a `Report`.

    On a terminal the current stage is one line redrawn at most ten times a second. Elsewhere each stage
    gets a line when it starts, one every few seconds while it lasts, and one when it ends.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._tty = stream.isatty()
        self._stage = ""
        self._unit = ""
        self._done = 0
        self._total = 0
        self._began = self._unit_began = self._drawn = clock()
        self._unit_from = 0

    def stage(self, name: str) -> None:
        """Begin a stage, ending the one before."""
        if name == self._stage:
            return
        self.end()
        self._stage = name
        self._unit, self._done, self._total = "", 0, 0
        self._began = self._drawn = self._clock()
        if self._tty:
            self._draw()
        else:
            self._write(f"{name} ...\n")

    def __call__(self, unit: str, done: int, total: int) -> None:
        now = self._clock()
        if unit != self._unit or done < self._done:
            self._unit, self._unit_began, self._unit_from = unit, now, done
        self._done, self._total = done, total
        if now - self._drawn >= (_REDRAW_S if self._tty else _PLAIN_S):
            self._drawn = now
            self._draw()

    def within(self, name: str) -> Report:
        """A `Report` for work that is all one stage; the stage begins with its first report.

        So a request that is refused at once leaves nothing but the refusal.
        """

        def report(unit: str, done: int, total: int) -> None:
            self.stage(name)
            self(unit, done, total)

        return report

    def end(self, mark: str = "✓") -> None:
        """Finish the stage's line; `mark` stands before it."""
        if not self._stage:
            return
        what = f"  {amount(self._unit, self._done)}" if self._unit and self._done else ""
        line = f"{mark} {self._stage:<8}{what}  {duration(self._clock() - self._began)}"
        self._write(f"\r\x1b[K{line}\n" if self._tty else f"{line}\n")
        self._stage = ""

    def _draw(self) -> None:
        parts = [f"  {self._stage:<8}"]
        if self._unit and self._total:
            part = min(1.0, self._done / self._total)
            full = round(part * _BAR)
            parts.append(f"{'█' * full}{'░' * (_BAR - full)} {part:4.0%}")
        if self._unit:
            parts.append(share(self._unit, self._done, self._total))
        elapsed = self._clock() - self._unit_began
        if self._unit and elapsed > 0.5 and self._done > self._unit_from:
            parts.append(rate(self._unit, (self._done - self._unit_from) / elapsed))
        line = "  ".join(parts)
        if self._tty:
            width = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{line[: max(width - 1, 1)]}")
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
