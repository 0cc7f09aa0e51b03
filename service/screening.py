"""Which releases a watch converts by itself, and in words why not the others.

A schedule does less than a person may ask for: it never touches what its owner did not leave open (private,
gated, no derivatives, opted out), and never converts a conversion.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

from service.licences import forbids_derivatives
from service.releases import Release
from service.source import Source
from service.watches import Watch

OPT_OUT_TAG = "no-tricksmith"
"""Whoever writes this tag into a model card is left alone by every schedule."""
OWN_TAG = "tricksmith"


def opted_out(extra: Path | None = None) -> frozenset[str]:
    """Owners and models that schedules leave alone: the list that comes with Tricksmith, and the operator's.

    One name (`owner` or `owner/model`) per line; `#` starts a comment.
    """
    texts = [files("service").joinpath("opt_out.txt").read_text("utf-8")]
    if extra is not None and extra.is_file():
        texts.append(extra.read_text("utf-8"))
    lines = (line.partition("#")[0].strip() for text in texts for line in text.splitlines())
    return frozenset(line.casefold() for line in lines if line)


def why_not_listed(watch: Watch, release: Release, out: frozenset[str]) -> str | None:
    """Why the watch passes the release over, by its listing alone; None where nothing speaks against it.

    What only its age speaks against is `too_young`.
    """
    owner = release.model.partition("/")[0].casefold()
    model = release.model.casefold()
    if owner in out or model in out or OPT_OUT_TAG in release.tags:
        return "its owner opted out"
    if OWN_TAG in release.tags:
        return "it is a conversion itself"
    if watch.allow and not _fits(model, watch.allow):
        return "no --allow pattern fits it"
    if _fits(model, watch.deny):
        return "a --deny pattern fits it"
    if watch.min_downloads and (release.downloads or 0) < watch.min_downloads:
        return f"it was downloaded {release.downloads or 0} times, not {watch.min_downloads}"
    return _why_not_kind(watch, release)


def _why_not_kind(watch: Watch, release: Release) -> str | None:
    tags = release.tags | {tag for tag in (release.task, release.library) if tag}
    if watch.task and watch.task not in tags:
        return f"its task is {release.task or 'not stated'}, not {watch.task}"
    if watch.library and watch.library not in tags:
        return f"its library is {release.library or 'not stated'}, not {watch.library}"
    missing = [tag for tag in watch.tags if tag not in tags]
    return f"it is not tagged {', '.join(missing)}" if missing else None


def too_young(watch: Watch, release: Release, now: float) -> str | None:
    """Why the watch does not convert a release yet; None where its time has come."""
    if watch.min_age and release.created is not None and now - release.created < watch.min_age * 86400:
        return f"it is younger than {watch.min_age:g} days; it comes when it is older"
    return None


def why_not_source(watch: Watch, source: Source) -> str | None:
    """Why the watch passes over a source that it has looked at; None where nothing speaks against it."""
    tags = source.card.get("tags") or []  # a listing may have left them out
    if OPT_OUT_TAG in tags:
        return "its owner opted out"
    if OWN_TAG in tags:
        return "it is a conversion itself"
    if (licence := forbids_derivatives(source)) is not None:
        return f"its licence ({licence}) forbids derivatives"
    if source.gated:
        return "it is gated: its owner decides who gets it"
    if source.private and not watch.private:
        return "it is private"
    return None


def _fits(model: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(model, pattern.casefold()) for pattern in patterns)
