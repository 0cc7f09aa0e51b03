"""Making a conversion again from its manifest, and comparing it with the first one bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.disk import disk_errors
from service.fetch import check_space, fetch
from service.headers import read_headers
from service.inspection import Inspection
from service.manifest import file_digests, versions
from service.source import resolve
from tricks import BadInput, Report, parse_trick, silent


@dataclass(frozen=True)
class Reproduction:
    """What came out: `differing` files (also those that only one of the two has), and other `versions`.

    `versions` maps a package to (then, now) where they are not the same: what may explain a difference.
    """

    same: bool
    files: int
    differing: tuple[str, ...]
    versions: dict[str, tuple[str | None, str | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def reproduce(
    made: Inspection,
    source: str | None = None,
    *,
    token: str | None = None,
    scratch: Path | None = None,
    report: Report = silent,
) -> Reproduction:
    """Convert again what `made` says, from its own source (or from `source`, which must hold the same files).

    Raises:
        BadInput: the source is gone, or no longer what it was; or the disk is too small.
    """
    from tricks import convert, make_plan  # late: they bring torch

    manifest = made.manifest
    named = source or made.source
    if named is None:
        raise BadInput(f"{made.where} was made from a local folder; give its source with --source")
    found = resolve(named, token)
    check_space(scratch or Path.cwd(), 2 * found.size_bytes, f"converting {found.model} again")
    with TemporaryDirectory(dir=scratch, prefix="tricksmith-") as work, disk_errors():
        folder = fetch(found, Path(work) / "source", token, report)
        _check_inputs(folder, manifest["source"]["files"], named)
        plan = make_plan(read_headers(found, token), [parse_trick(text) for text in manifest["recipe"]])
        again = convert(plan, folder, Path(work) / "converted", report).files
    first: dict[str, str] = manifest["files"]
    differing = sorted(name for name in {*first, *again} if first.get(name) != again.get(name))
    then, now = manifest.get("versions") or {}, versions()
    others = {name: (then.get(name), now.get(name)) for name in now if then.get(name) != now.get(name)}
    return Reproduction(not differing, len(first), tuple(differing), others)


def _check_inputs(folder: Path, files: dict[str, str], named: str) -> None:
    for name, found in file_digests(folder, files).items():
        if found != files[name]:
            raise BadInput(f"{name} of {named} is not the file that was converted; give the same source")
