"""Who asks: the operator of a machine of their own, or on a public page a visitor, signed in or not."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from service.jobs import Job
from service.settings import signs_in
from service.tokens import Grant
from tricks import BadInput


@dataclass(frozen=True)
class Visitor:
    """Whoever sits at the page. `name` is their Hub name; the operator has none and may do anything."""

    name: str | None = None
    operator: bool = False
    grant: Grant | None = field(default=None, repr=False)

    @property
    def token(self) -> str | bool | None:
        """With what the Hub is asked for them: the operator's own login, theirs, or none at all."""
        if self.operator:
            return None
        return self.grant.token if self.grant else False

    @property
    def viewer(self) -> str | None:
        """Who they are for the service: None may do anything, nobody in particular is an empty name."""
        return None if self.operator else self.name or ""

    def sees(self, job: Job) -> bool:
        """Whether a job exists for them: other people's private ones do not."""
        private = job.private or bool((job.source or {}).get("private"))
        return self.operator or not private or self.owns(job)

    def owns(self, job: Job) -> bool:
        """Whether they may cancel and retry a job."""
        return self.operator or (self.name is not None and job.user == self.name)

    def check_signed_in(self) -> None:
        """Raises BadInput where somebody must sign in first, or again."""
        if not self.operator and self.grant is None:
            raise BadInput(
                "your sign-in has ended, or you never signed in; sign in with Hugging Face above: what you"
                " typed is kept"
            )

    def check_sees(self, job: Job) -> None:
        """Raises BadInput in the words of a job that does not exist."""
        if not self.sees(job):
            raise BadInput(f"there is no job {job.id!r}; see the queue for those there are")


OPERATOR = Visitor(operator=True)


def visitor(request: gr.Request | Any) -> Visitor:
    """Who sent this request, by the session cookie that Gradio's sign-in has signed."""
    if not signs_in():
        return OPERATOR
    inner = getattr(request, "request", request)
    told = (inner.scope.get("session") or {}).get("oauth_info") if inner is not None else None
    if not told or not told.get("access_token"):
        return Visitor()
    expires = float(told.get("expires_at") or 0)
    if expires < time.time():
        return Visitor()
    grant = Grant.of(told["access_token"], expires, told.get("scope") or "")
    return Visitor(name=str(told["userinfo"]["preferred_username"]), grant=grant)
