"""Publishing to a Hub repo: one commit, seen by others only when it is complete and was read back.

A new repo is private until its files were downloaded again and are, byte for byte, those that were verified.
A new conversion in a public repo of ours is first committed to a branch of its own, read back from there, and
only then committed to `main`. Each step may be cut off and done again: what arrived is not sent twice, and a
commit whose answer was lost is recognised by its manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
)

from service.fetch import blob_id, check_space
from service.hub import (
    LONG_S,
    HubConflict,
    HubUnavailable,
    HubUnusable,
    ask,
    endpoint,
    hub,
    patience,
)
from service.listing import Listed, describe, files_in
from service.manifest import check_same_source, digest, file_digests, with_lineage
from service.offer import Found, Note, NotTold, find_request, head_of, mark_of
from service.papers import write_manifest
from service.place import Place, look_at, place_at
from service.read_back import read_back
from service.source import Source
from service.upload import Progress, additions, send
from tricks import BadInput, Report, TricksmithError

BRANCH_S = 20.0  # not every Hub has branches: no long wait for one
MAIN = "main"

_Operation = CommitOperationAdd | CommitOperationDelete


def publish_to_hub(
    folder: Path,
    to: str,
    names: list[str],
    manifest: dict[str, Any],
    source: Source,
    private: bool,
    pr: bool,
    token: str | None,
    report: Report,
) -> str:
    """Publish `names` of `folder`, whose `manifest` it holds; returns the address of the repo or the request.

    Raises:
        BadInput: the repo is not ours, is being changed by somebody else, or the Hub refuses.
        TricksmithError: what was read back is not what was sent; nobody but the owner sees it.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    check_space(folder, max(sizes.values()), "reading the publication back")
    progress = Progress(report, 2 * sum(sizes.values()))  # there, and back again
    api = hub(token)
    with patience(LONG_S, stop=progress.still):
        place = look_at(api, to, pr)
        to = place.info.id if place.info is not None else to  # by the name that it goes by now
        if not pr:
            check_same_source(place.manifest, manifest, to)
            manifest = with_lineage(manifest, place.manifest, place.info.sha if place.info else None)
            write_manifest(folder, manifest)
        papers = file_digests(folder, set(names) - set(manifest["files"]))
        work = _Publication(api, folder, to, {**papers, **manifest["files"]}, manifest, source, progress)
        return work.offer(place) if pr else work.commit(place, private)


@dataclass
class _Publication:
    api: HfApi
    folder: Path
    to: str
    digests: dict[str, str]
    manifest: dict[str, Any]
    source: Source
    progress: Progress

    @property
    def mark(self) -> str:
        return digest(self.manifest)

    @property
    def address(self) -> str:
        return f"{endpoint()}/{self.to}"

    def commit(self, place: Place, private: bool) -> str:
        """One commit to `main`, visible only after it was read back."""
        if place.info is not None and place.mark == self.mark:
            if place.info.private is not False and not private:
                # An earlier try got so far. Its papers name their own time; the files are these.
                self._read_back(place.info.sha or MAIN, self.manifest["files"])
                self._reveal()
            return self.address
        fresh = place.manifest is None
        info = self._new_repo() if place.info is None else place.info
        stale = sorted(place.files - set(self.digests))
        changed = self.digests if fresh else self._changed(info)
        # A new repo was asked to be private: a Hub that does not say whether it is will have heard.
        seen = info.private is False or (info.private is None and not fresh)
        if seen and (branch := self._branch(info)) is not None:
            self._read_back(self._send_and_commit(changed, branch, None, stale))
        made = self._send_and_commit(changed, MAIN, info.sha, stale)
        self._read_back(made)
        if seen:
            self._drop_branch()
        if fresh and not private:  # a repo that was there before keeps the visibility its owner gave it
            self._reveal()
        return self.address

    def offer(self, place: Place) -> str:
        """One pull request, opened once.

        Raises:
            BadInput: the repo's owner closed it.
        """
        if (known := self._request()) is not None:
            return self._again(known)
        note = Note(self.folder, mark_of(self.manifest))
        base = place.info.sha if place.info else None
        with additions(self.folder, self.digests, self.progress) as files:
            send(self.api, self.to, files, MAIN, True, self.progress)

            def once() -> CommitInfo | Found:
                if (known := self._request(note)) is not None:
                    return known
                with note.laid_down(self.to):
                    return self._commit(files, MAIN, base, pr=True)

            made = self._told_or_found(lambda: ask(self.to, once))
        if isinstance(made, Found):
            return self._again(made)
        self._read_back(made.oid)
        return made.pr_url or self.address

    def _told_or_found(self, offer: Callable[[], CommitInfo | Found]) -> CommitInfo | Found:
        try:
            return offer()
        except HubUnusable:  # it took the request, and says so in words of its own
            if (known := self._request()) is not None:
                return known
            raise

    def _request(self, note: Note | None = None) -> Found | None:
        """The request that is there already, as far as the Hub (or the note of an earlier try) says."""
        try:
            return find_request(self.api, self.to, self.manifest)
        except NotTold:
            if note is not None:
                note.check(self.to)
            return None

    def _again(self, known: Found) -> str:
        """The address of a request that an earlier try opened, and perhaps did not read back."""
        address = f"{self.address}/discussions/{known.number}"
        if known.status == "closed":
            raise BadInput(f"{address} offered this and was closed; ask its owner, or publish to a new repo")
        head = None if known.status == "merged" else head_of(self.api, self.to, known.number)
        if head is not None and head.info is not None and head.mark == self.mark:
            self._read_back(head.info.sha or MAIN, self.manifest["files"])
        return address

    # steps

    def _new_repo(self) -> ModelInfo:
        # Made by an answer that was lost, or by somebody else just now, or made and said in other words.
        with suppress(HubConflict, HubUnusable):
            ask(self.to, lambda: self.api.create_repo(self.to, private=True))
        info = look_at(self.api, self.to, pr=False).info
        if info is None:
            raise HubUnavailable(f"{self.to} was created and is not there; try again")
        return info

    def _changed(self, info: ModelInfo) -> dict[str, str]:
        """What the repo does not hold already: the rest is not sent again."""
        listed = describe(self.api, self.to, info.sha, details=True)
        there = files_in(self.api, listed, details=True)
        return {
            name: sha256
            for name, sha256 in self.digests.items()
            if not _is_same(there.get(name), self.folder / name, sha256)
        }

    def _send_and_commit(
        self, changed: dict[str, str], branch: str, parent: str | None, stale: list[str]
    ) -> str:
        """Upload what is missing and commit it; returns the commit."""
        with additions(self.folder, changed, self.progress) as files:
            send(self.api, self.to, files, branch, False, self.progress)
            for name in self.digests.keys() - changed.keys():
                self.progress.begin()
                self.progress.finished((self.folder / name).stat().st_size)
            operations: list[_Operation] = [*files, *(CommitOperationDelete(name) for name in stale)]
            tried = False

            def once() -> str:
                nonlocal tried
                if tried and (made := self._landed(branch)) is not None:
                    return made
                tried = True
                return self._commit(operations, branch, parent).oid

            try:
                return ask(self.to, once)
            except (HubConflict, HubUnusable):
                if (made := self._landed(branch)) is not None:
                    return made
                raise

    def _commit(
        self, operations: Sequence[_Operation], revision: str, parent: str | None, *, pr: bool = False
    ) -> CommitInfo:
        recipe = ", ".join(self.manifest["recipe"])
        mark = mark_of(self.manifest) if pr else self.mark[:12]
        try:
            return self.api.create_commit(
                self.to,
                operations,
                commit_message=f"{recipe} of {self.source.model}, by Tricksmith ({mark})",
                commit_description=f"Source: {self.source.model}@{self.source.commit}\nManifest: {self.mark}",
                revision=revision,
                parent_commit=parent,
                create_pr=pr,
            )
        except ValueError as error:
            if "Invalid metadata in README.md" not in str(error):
                raise
            what = " ".join(str(error).partition("\n")[2].split())[:200]
            raise TricksmithError(f"the Hub does not take the card of {self.to}: {what}") from error

    def _landed(self, branch: str) -> str | None:
        """The head of `branch`, where it is our commit."""
        place = place_at(self.api, self.to, branch)
        return place.info.sha if place.info is not None and place.mark == self.mark else None

    def _read_back(self, commit: str, digests: dict[str, str] | None = None) -> None:
        read_back(self.api, self.to, commit, digests or self.digests, self.folder.parent, self.progress)

    def _reveal(self) -> None:
        """Let others see the repo; where they had to accept the source's terms, they have to here."""
        gated: Any = "auto" if self.source.gated else None
        ask(self.to, lambda: self.api.update_repo_settings(self.to, private=False, gated=gated))

    def _branch(self, info: ModelInfo) -> str | None:
        """A branch to try the commit on; None where the Hub has no branches."""
        name = self._branch_name
        self._drop_branch()
        add = partial(self.api.create_branch, self.to, branch=name, revision=info.sha, exist_ok=True)
        try:
            with patience(BRANCH_S, tries=2, stop=self.progress.still):
                ask(self.to, add)
        except BadInput:
            return None
        return name

    @property
    def _branch_name(self) -> str:
        return f"tricksmith-{self.mark[:12]}"

    def _drop_branch(self) -> None:
        with suppress(BadInput), patience(BRANCH_S, tries=2, stop=self.progress.still):
            ask(self.to, partial(self.api.delete_branch, self.to, branch=self._branch_name))


def _is_same(there: Listed | None, path: Path, sha256: str) -> bool:
    """Whether the Hub says that it holds these bytes."""
    if there is None or there.size != path.stat().st_size:
        return False
    return there.sha256 == sha256 or (there.blob is not None and there.blob == blob_id(path))
