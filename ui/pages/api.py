"""Every action as an endpoint for programs: `gradio_client.Client(url).predict(..., api_name="/plan")`.

Each answers plain JSON, asks as the visitor whose session comes along, and refuses in one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import api

from service.api import Service
from service.evidence_request import EvidenceRequest
from tricks import BadInput, Plan, TricksmithError
from ui.pages import gallery as shown
from ui.pages import parts
from ui.pages.api_watches import WatchEndpoints
from ui.pages.escape import esc
from ui.pages.guard import check_folders
from ui.pages.visitor import Visitor, visitor

Gpu = Callable[[], str]
"""Names the GPU that a call is lent."""

_EXAMPLE = """from gradio_client import Client

client = Client("WHERE")
model, tricks = "HuggingFaceTB/SmolLM2-135M", ["flashnorm"]
client.predict(model, tricks, api_name="/plan")
to = "you/SmolLM2-135M-FlashNorm"
job = client.predict(model, tricks, to, False, False, "quick", api_name="/submit")
client.predict(job["id"], api_name="/job")["state"]          # once published:
asked = client.predict(job["id"], "Once upon a time", 32, api_name="/compare")
client.predict(asked["id"], api_name="/comparison")
"""
_MOST = 200  # jobs in one answer


_TOLD = ("model", "architecture", "tricks", "places", "savings", "proof", "lossless", "fits")


def told(plan: Plan) -> dict[str, Any]:
    """What a plan says to people. The rest is for its converter, and `gradio_client` would take some of it
    for files to be downloaded."""
    data = plan.to_json() | {"fits": plan.fits}
    return {name: data[name] for name in _TOLD}


def whole(value: Any, what: str) -> int:
    """A number that a program sent, as an integer.

    Raises:
        BadInput: it is no whole number.
    """
    if not isinstance(value, int | float) or not float(value).is_integer():
        raise BadInput(f"{str(value)[:40]!r} is no whole number of {what}")
    return int(value)


def asked(action: Callable[[Visitor], Any], request: gr.Request) -> Any:
    """What the action answers this visitor, a refusal told in its own line."""
    try:
        return action(visitor(request))
    except TricksmithError as error:
        raise gr.Error(str(error), print_exception=False) from None


@dataclass(frozen=True)
class Endpoints:
    """The actions, each a method whose docstring is its documentation."""

    service: Service
    folders: bool

    def search(self, words: str, request: gr.Request) -> list[Any]:
        """Models of the Hub that match: model, downloads and task of each."""
        return [vars(hit) for hit in asked(lambda _: self.service.search(words), request)]

    def explore(self, model: str, request: gr.Request) -> dict[str, Any]:
        """A model's figures, and for every trick whether it fits, where, and what it would save."""

        def ask(asker: Visitor) -> dict[str, Any]:
            check_folders(self.folders, model=model)
            seen = self.service.explore(model, asker.token)
            looks = [
                {
                    "trick": look.trick.name,
                    "fits": look.fits,
                    "reason": look.reason,
                    "plan": told(look.plan) if look.plan else None,
                }
                for look in seen.looks
            ]
            source = {name: getattr(seen.source, name) for name in ("model", "commit", "licence")}
            return {
                **source,
                "architecture": seen.architecture,
                "figures": vars(seen.figures),
                "tricks": looks,
            }

        found: dict[str, Any] = asked(ask, request)
        return found

    def plan(self, model: str, tricks: list[str], request: gr.Request) -> dict[str, Any]:
        """What the tricks would change and save, proven, and what the work needs; no weight is read.
        `tricks` are written "name" or "name:option=value"; none means every one."""

        def ask(asker: Visitor) -> dict[str, Any]:
            check_folders(self.folders, model=model)
            seen = self.service.preflight(model, tricks, asker.token)
            return told(seen.plan) | {"preflight": seen.to_json()}

        found: dict[str, Any] = asked(ask, request)
        return found

    def recipes(self, request: gr.Request) -> dict[str, Any]:
        """The recipes of evidence: how much may be measured."""
        found: dict[str, Any] = asked(lambda _: self.service.recipes(), request)
        return found

    def submit(
        self,
        model: str,
        tricks: list[str],
        to: str,
        pr: bool,
        private: bool,
        evidence: str,
        request: gr.Request,
    ) -> dict[str, Any]:
        """Queue a conversion, or find the job that does the same already; the job. `evidence` is a recipe's
        name, or the YAML of one of your own."""

        def ask(asker: Visitor) -> dict[str, Any]:
            asker.check_signed_in()
            check_folders(self.folders, model=model, **({"to": to} if to else {}))
            made = self.service.submit(
                model,
                tricks,
                to or None,
                pr=pr,
                private=private,
                grant=asker.grant,
                evidence=EvidenceRequest(evidence or "quick"),
            )
            return made.to_json()

        found: dict[str, Any] = asked(ask, request)
        return found

    def jobs(self, limit: int, request: gr.Request) -> list[Any]:
        """The latest jobs, newest first."""

        def ask(asker: Visitor) -> list[Any]:
            most = max(1, min(whole(limit, "jobs"), _MOST))
            return [job.to_json() for job in self.service.jobs(most, viewer=asker.viewer)]

        found: list[Any] = asked(ask, request)
        return found

    def queue(self, request: gr.Request) -> list[Any]:
        """The jobs that run or wait, newest first; `ahead` is how many are begun before one that waits."""

        def ask(asker: Visitor) -> list[Any]:
            found = [job for job in self.service.jobs(_MOST, viewer=asker.viewer) if not job.state.final]
            return [
                job.to_json() | {"ahead": self.service.place(job.id, viewer=asker.viewer)[0]} for job in found
            ]

        found: list[Any] = asked(ask, request)
        return found

    def job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """One job as it is now."""
        return self._job(self.service.job, job_id, request)

    def cancel(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Ask a job to stop; the job."""
        return self._job(self.service.cancel, job_id, request)

    def retry(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Queue a failed or cancelled job again; the job."""
        return self._job(self.service.retry, job_id, request)

    def _job(self, action: Callable[..., Any], job_id: str, request: gr.Request) -> dict[str, Any]:
        found: dict[str, Any] = asked(lambda asker: action(job_id, viewer=asker.viewer).to_json(), request)
        return found

    def evidence(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """What the job measured; empty before it has."""
        found = asked(lambda asker: self.service.evidence(job_id, viewer=asker.viewer), request)
        return {} if found is None else dict(found.to_json())

    def card(self, job_id: str, request: gr.Request) -> str:
        """The card that the job published, as Markdown; empty before it has."""
        return str(asked(lambda asker: self.service.card(job_id, viewer=asker.viewer), request) or "")

    def compare(self, job_id: str, prompt: str, new_tokens: int, request: gr.Request) -> dict[str, Any]:
        """Have a published job's source and result write on after a prompt; what was asked, with its `id`."""

        def ask(asker: Visitor) -> dict[str, Any]:
            asker.check_signed_in()
            who: dict[str, Any] = {"viewer": asker.viewer, "grant": asker.grant}
            return vars(self.service.compare(job_id, prompt, whole(new_tokens, "new tokens"), **who))

        found: dict[str, Any] = asked(ask, request)
        return found

    def comparison(self, comparison_id: str, request: gr.Request) -> dict[str, Any]:
        """What both wrote so far, token by token, with cache bytes and speed; `final` says that it ended."""
        found: dict[str, Any] = asked(
            lambda asker: self.service.comparison(comparison_id, viewer=asker.viewer)[1].to_json(), request
        )
        return found

    def gallery(self, words: str, tricks: list[str], request: gr.Request) -> list[Any]:
        """Converted models, with figures: those whose name holds `words`, and that have all of `tricks`."""

        def ask(asker: Visitor) -> list[Any]:
            found = shown.converted(self.service, asker, words, tricks)
            return [job.to_json() | {"figures": shown.figures(self.service, job)} for job in found]

        found: list[Any] = asked(ask, request)
        return found

    def all(self) -> tuple[Callable[..., Any], ...]:
        """Every action."""
        read = (self.search, self.explore, self.plan, self.recipes, self.gallery)
        follow = (self.jobs, self.queue, self.job, self.evidence, self.card)
        return (*read, self.submit, *follow, self.cancel, self.retry, self.compare, self.comparison)


def build(service: Service, *, folders: bool, gpu: Gpu | None = None) -> None:
    """Add the endpoints, and their documentation, to the current Blocks; `gpu` where ZeroGPU lends one."""
    listed = []
    watches = WatchEndpoints(service, asked)
    for function in (*Endpoints(service, folders).all(), *watches.all(), *([gpu] if gpu else [])):
        api(function, api_name=function.__name__, concurrency_limit=8)
        said = " ".join((function.__doc__ or "").split())
        names = [name for name in function.__annotations__ if name not in ("request", "return")]
        taken = f"`{', '.join(names)}`" if names else "no arguments"
        listed.append(f"- **`/{function.__name__}`** ({taken}): {said}")
    gr.HTML(parts.brand())
    gr.Markdown("\n".join(["## For programs", *listed]), elem_id="api")
    # Not gr.Code: its colours are too pale to read.
    example = _EXAMPLE.replace("WHERE", os.environ.get("SPACE_ID") or "http://127.0.0.1:7860")
    gr.HTML(f'<pre class="ts-code" tabindex="0" aria-label="From Python">{esc(example)}</pre>')
