"""Options of a trick: what values they take, and how a value is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Option(Protocol):
    """One option of a trick."""

    @property
    def default(self) -> str:
        """The value, in its canonical writing, that holds where none is given."""

    def read(self, text: str) -> str | None:
        """The canonical writing of `text`, or None if it is no value of this option."""

    def describe(self) -> str:
        """The values it takes, for messages."""


@dataclass(frozen=True)
class Choice:
    """One of a few words, the default first."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def read(self, text: str) -> str | None:
        return text if text in self.words else None

    def describe(self) -> str:
        return "one of: " + ", ".join(self.words)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`, or one of `words`."""

    default: str
    low: int
    high: int
    words: tuple[str, ...] = ()

    def read(self, text: str) -> str | None:
        if text in self.words:
            return text
        plain = text.isascii() and text.isdigit() and len(text) < 20
        return str(int(text)) if plain and self.low <= int(text) <= self.high else None

    def describe(self) -> str:
        words = "".join(f"{word} or " for word in self.words)
        return f"{words}a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Real:
    """A number from `low` to `high`, or one of `words`."""

    default: str
    low: float
    high: float
    words: tuple[str, ...] = ()

    def read(self, text: str) -> str | None:
        if text in self.words:
            return text
        try:
            value = float(text)
        except ValueError:
            return None
        return f"{value:g}" if self.low <= value <= self.high else None

    def describe(self) -> str:
        words = "".join(f"{word} or " for word in self.words)
        return f"{words}a number from {self.low:g} to {self.high:g}"
