"""What a Hub token may do, asked before any work: so that a job does not fail at its last stage."""

from __future__ import annotations

import re
from typing import Any

from service.hub import ask, hub
from tricks import BadInput

_WRITES = re.compile(r"repo(?:\.[a-z]+)*\.(?!read)[a-z]+")  # repo.write, and kinds of writing yet unknown


def check_rights(to: str, token: str | None, pr: bool) -> None:
    """Whether the token may write into the namespace of `to`, or open a pull request there.

    Raises:
        BadInput: no token, one that the Hub does not know, or one without the right; says which right.
    """
    me = ask(to, hub(token).whoami)
    auth = me.get("auth") or {}
    access = auth.get("accessToken") or {}
    if access.get("role") == "read":
        raise BadInput("this Hub token may only read; make one that may write, and set HF_TOKEN to it")
    namespace = to.split("/")[0]
    mine = writable(me)
    told = me.get("orgs") is not None  # a Hub that does not list them knows better than this answer
    if not pr and told and namespace not in mine:
        raise BadInput(
            f"this token may not write to {namespace}; use one of: {', '.join(sorted(mine))}"
            f" (for a folder, write ./{to})"
        )
    if isinstance(access.get("fineGrained"), dict):
        _check_fine_grained(access["fineGrained"], to, pr)


def namespaces(token: str | None) -> tuple[str, list[str]]:
    """The user's own namespace, and all that the user may write to."""
    me = ask("your account", hub(token).whoami)
    if not isinstance(me.get("name"), str):
        raise BadInput("the Hub does not say whose token this is; name the destination with --to")
    return me["name"], sorted(writable(me))


def writable(me: dict[str, Any]) -> set[str]:
    """The namespaces in which the user behind a `whoami` answer may write."""
    orgs = [org for org in me.get("orgs") or [] if org.get("roleInOrg") != "read"]
    return {name for name in (me.get("name"), *(org.get("name") for org in orgs)) if name}


def _check_fine_grained(rights: dict[str, Any], to: str, pr: bool) -> None:
    """A fine-grained token lists what it may do: everywhere (`global`), and with one owner or repo."""
    if not isinstance(rights.get("scoped"), list):
        return  # it does not say: the Hub will
    namespace = to.split("/")[0]
    found = set(rights.get("global") or [])
    for scope in rights["scoped"]:
        if (scope.get("entity") or {}).get("name") in (namespace, to):
            found.update(scope.get("permissions") or [])
    writes = any(_WRITES.fullmatch(right) for right in found)
    if pr and not writes and "discussion.write" not in found:
        raise BadInput("this token may not open pull requests; give it the right 'discussion.write'")
    if not pr and not writes:
        raise BadInput(
            f"this token may not write to repos of {namespace}; give it the right 'repo.write' there"
        )
