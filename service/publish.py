"""Publishing: a verified conversion goes to a folder or to a Hub repo, whole or not at all.

Nothing is published without evidence whose verdict allows it, and there is no way around that. A destination
that Tricksmith did not make is never touched; publishing the same manifest twice changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.eval_results import write_eval_results
from service.hub import hub, is_hub_id
from service.manifest import MANIFEST, check_files, check_same_source, read_manifest
from service.papers import CARD, EVIDENCE, PICTURE, write_papers
from service.place import look_at
from service.publish_folder import check_folder, publish_to_folder
from service.publish_hub import publish_to_hub
from service.rights import check_rights
from service.source import Source
from tricks import BadInput, Report, TricksmithError, silent

if TYPE_CHECKING:
    from evals import Evidence

UNVERIFIED = "UNVERIFIED"


class NotPublishable(TricksmithError):
    """The evidence does not allow publishing."""


def is_folder(to: str) -> bool:
    """Whether a destination is a folder: written as a path (`/`, `.`, `~`) or not as `namespace/name`."""
    return to.startswith(("/", ".", "~")) or to.count("/") != 1 or to.endswith("/")


def check_destination(
    to: str, token: str | None = None, pr: bool = False, source: Source | None = None
) -> str:
    """See early whether a conversion may go to `to`; give it back as it is to be kept (folders absolute).

    Raises:
        BadInput: malformed, no right to write, or it exists and is not ours, or not of `source`.
    """
    to = to.strip()
    if not to:
        raise BadInput("no destination given; write NAMESPACE/NAME or a folder")
    if any(ord(char) < 32 for char in to):
        raise BadInput(f"{to!r} holds a control character; write NAMESPACE/NAME or a folder")
    if is_folder(to):
        if pr:
            raise BadInput(f"a pull request goes to a Hub repo, not to the folder {to}; leave out --pr")
        path = Path(to).expanduser().absolute()
        _check_source(check_folder(path), source, str(path))
        return str(path)
    if not is_hub_id(to):
        raise BadInput(f"{to!r} is no Hub id; write NAMESPACE/NAME, or ./{to} for a folder")
    check_rights(to, token, pr)
    place = look_at(hub(token), to, pr)
    if not pr:
        _check_source(place.manifest, source, to)
    return to


def _check_source(there: dict[str, Any] | None, source: Source | None, to: str) -> None:
    if source is not None:
        check_same_source(there, {"source": {"id": source.model}}, to)


def check_visibility(source: Source, to: str, private: bool) -> None:
    """A source that only its owner may read does not become public by way of its conversion.

    Raises:
        BadInput: a private source, and a public Hub destination.
    """
    if source.private and not private and not is_folder(to):
        raise BadInput(f"{source.model} is private; publish its conversion with --private, or into a folder")


def publish(
    folder: Path,
    to: str,
    *,
    evidence: Evidence,
    source: Source,
    private: bool = False,
    pr: bool = False,
    token: str | None = None,
    report: Report | None = None,
) -> str:
    """Publish the converted `folder` (weights, card, manifest, evidence); returns the address or the folder.

    Only files that the manifest names, the card, the manifest, the evidence and its scores on benchmarks of
    the Hub leave the folder. `report` counts bytes and may raise `Cancelled`: then nothing of the destination
    was changed for others to see.

    Raises:
        NotPublishable: the evidence is absent or its verdict is `different`, or the card says unverified.
        BadInput: the destination is not ours, the folder is not what was converted, the disk is full.
    """
    verdict = getattr(evidence, "verdict", None)
    if verdict is None or not verdict.publishable:
        said = "it was not compared with its source" if verdict is None else f"the verdict is {verdict.value}"
        raise NotPublishable(f"{source.model} is not published: {said}")
    manifest = read_manifest(folder)
    if manifest is None:
        raise BadInput(f"{folder} has no {MANIFEST} of Tricksmith; convert first")
    check_visibility(source, to, private)
    card = _verified_card(folder)
    check_files(folder, manifest)
    # What is published beside the card is the evidence that let it through, and no other.
    write_papers(folder, card=card, evidence=evidence.to_json(), picture=_missing_picture(folder, evidence))
    scores = write_eval_results(folder, evidence, None if is_folder(to) else to)
    drawn = [PICTURE] if evidence.drawable else []
    names = sorted({*manifest["files"], *scores, *drawn, CARD, MANIFEST, EVIDENCE})
    if is_folder(to):
        return publish_to_folder(folder, Path(to).expanduser().absolute(), names, manifest, report or silent)
    return publish_to_hub(folder, to, names, manifest, source, private, pr, token, report or silent)


def _missing_picture(folder: Path, evidence: Evidence) -> bytes | None:
    if not evidence.drawable or (folder / PICTURE).is_file():
        return None
    from evals import picture  # late: it brings torch

    return picture(evidence)


def _verified_card(folder: Path) -> str:
    path = folder / CARD
    if not path.is_file():
        raise BadInput(f"{folder} has no {CARD}; convert and verify first")
    card = path.read_text("utf-8")
    body = card.split("\n---\n", 1)[-1].lstrip()
    if UNVERIFIED in body.split("\n", 1)[0]:
        raise NotPublishable(f"the card says {UNVERIFIED}; verify first")
    return card
