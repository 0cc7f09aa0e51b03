"""What was done to a converted model, told from its own papers: a folder's or a Hub repo's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.hub import HubMissing, ask, hub, is_hub_id
from service.manifest import MANIFEST, digest, read_manifest
from service.papers import EVIDENCE
from service.place import place_at
from tricks import BadInput


@dataclass(frozen=True)
class Inspection:
    """A converted model's manifest and evidence, and the digest that names the conversion.

    `where` is as it was asked for; `commit` is the Hub commit that was read, None for a folder.
    """

    where: str
    commit: str | None
    manifest: dict[str, Any]
    evidence: dict[str, Any] | None
    digest: str

    @property
    def source(self) -> str | None:
        """The source as a command names it; None where it was a folder of somebody's machine."""
        said = self.manifest["source"]
        return f"{said['id']}@{said['commit']}" if said.get("commit") else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def inspect(where: str, token: str | None = None) -> Inspection:
    """Read the papers of `where`: a folder, or a Hub id with an optional `@revision`.

    Raises:
        BadInput: there is no such place, or Tricksmith did not make what is there.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        manifest, evidence, commit = read_manifest(path), _evidence(path / EVIDENCE), None
    else:
        name, _, revision = where.partition("@")
        if not is_hub_id(name):
            raise BadInput(f"{where!r} is neither a folder nor a Hub id; a Hub id is written org/name")
        manifest, evidence, commit = _from_hub(name, revision or None, token)
    if manifest is None:
        raise BadInput(f"{where} has no {MANIFEST} of Tricksmith; only what it made can be inspected")
    return Inspection(where, commit, manifest, evidence, digest(manifest))


def _from_hub(
    name: str, revision: str | None, token: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
    api = hub(token)
    place = place_at(api, name, revision)
    if place.info is None:
        raise HubMissing(f"{name} is not on the Hub, or is private; check the id")
    commit = place.info.sha
    if EVIDENCE not in place.names:
        return place.manifest, None, commit
    with TemporaryDirectory(prefix="tricksmith-") as scratch:
        path = ask(
            name, lambda: api.hf_hub_download(name, EVIDENCE, revision=commit, local_dir=scratch), commit
        )
        return place.manifest, _evidence(Path(path)), commit


def _evidence(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
