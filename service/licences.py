"""Licences that forbid a changed copy, as far as a licence's name can tell. Not legal advice, a safeguard."""

from __future__ import annotations

import re

from service.source import Source

# Creative Commons "no derivatives" in the Hub's spelling (cc-by-nd-4.0, cc-by-nc-nd-4.0) and in words.
_FORBIDS = re.compile(
    r"\bcc[-_ ]by[-_ ](?:nc[-_ ])?nd\b|\bno[-_ ]?deriv|all[-_ ]rights[-_ ]reserved|\bnd\b",
    re.IGNORECASE,
)


def forbids_derivatives(source: Source) -> str | None:
    """The name of the licence by which the source's owner forbids a changed copy; None where none says so."""
    named = [source.licence]
    for key in ("license", "license_name"):
        value = source.card.get(key)
        named += value if isinstance(value, list) else [value]
    return next((name for name in named if isinstance(name, str) and _FORBIDS.search(name)), None)
