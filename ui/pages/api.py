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
from tricks import TricksmithError
from ui.pages import parts
from ui.pages.escape import esc
from ui.pages.guard import check_folders
from ui.pages.visitor import Visitor, visitor

Gpu = Callable[[], str]
"""Names the GPU that a call is lent."""

_EXAMPLE = """from gradio_client import Client

client = Client("WHERE")
client.predict("HuggingFaceTB/SmolLM2-135M", ["flashnorm"], api_name="/plan")
to = "you/SmolLM2-135M-FlashNorm"
job = client.predict("HuggingFaceTB/SmolLM2-135M", ["flashnorm"], to, False, False, api_name="/submit")
client.predict(job["id"], api_name="/job")
"""


def _asked(action: Callable[[Visitor], Any], request: gr.Request) -> Any:
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
        return [vars(hit) for hit in _asked(lambda _: self.service.search(words), request)]

    def plan(self, model: str, tricks: list[str], request: gr.Request) -> dict[str, Any]:
        """What the tricks would change and save, proven, and what the work needs; no weight is read.
        `tricks` are written "name" or "name:option=value"; none means every one."""

        def ask(asker: Visitor) -> dict[str, Any]:
            check_folders(self.folders, model=model)
            seen = self.service.preflight(model, tricks, asker.token)
            return seen.plan.to_json() | {"preflight": seen.to_json()}

        found: dict[str, Any] = _asked(ask, request)
        return found

    def submit(
        self, model: str, tricks: list[str], to: str, pr: bool, private: bool, request: gr.Request
    ) -> dict[str, Any]:
        """Queue a conversion, or find the job that does the same already; the job."""

        def ask(asker: Visitor) -> dict[str, Any]:
            asker.check_signed_in()
            check_folders(self.folders, model=model, **({"to": to} if to else {}))
            made = self.service.submit(model, tricks, to or None, pr=pr, private=private, grant=asker.grant)
            return made.to_json()

        found: dict[str, Any] = _asked(ask, request)
        return found

    def jobs(self, limit: int, request: gr.Request) -> list[Any]:
        """The latest jobs, newest first."""
        most = max(1, min(int(limit), 200))
        return [
            job.to_json()
            for job in _asked(lambda asker: self.service.jobs(most, viewer=asker.viewer), request)
        ]

    def job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """One job as it is now."""
        found: dict[str, Any] = _asked(
            lambda asker: self.service.job(job_id, viewer=asker.viewer).to_json(), request
        )
        return found

    def evidence(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """What the job measured; empty before it has."""
        found = _asked(lambda asker: self.service.evidence(job_id, viewer=asker.viewer), request)
        return {} if found is None else dict(found.to_json())

    def card(self, job_id: str, request: gr.Request) -> str:
        """The card that the job published, as Markdown; empty before it has."""
        return str(_asked(lambda asker: self.service.card(job_id, viewer=asker.viewer), request) or "")

    def cancel(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Ask a job to stop; the job."""
        found: dict[str, Any] = _asked(
            lambda asker: self.service.cancel(job_id, viewer=asker.viewer).to_json(), request
        )
        return found

    def retry(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Queue a failed or cancelled job again; the job."""
        found: dict[str, Any] = _asked(
            lambda asker: self.service.retry(job_id, viewer=asker.viewer).to_json(), request
        )
        return found

    def all(self) -> tuple[Callable[..., Any], ...]:
        """Every action."""
        read = (self.search, self.plan, self.jobs, self.job, self.evidence, self.card)
        return (*read, self.submit, self.cancel, self.retry)


def build(service: Service, *, folders: bool, gpu: Gpu | None = None) -> None:
    """Add the endpoints, and their documentation, to the current Blocks; `gpu` where ZeroGPU lends one."""
    listed = []
    for function in (*Endpoints(service, folders).all(), *([gpu] if gpu else [])):
        api(function, api_name=function.__name__, concurrency_limit=8)
        said = " ".join((function.__doc__ or "").split())
        names = [name for name in function.__annotations__ if name not in ("request", "return")]
        listed.append(f"- **`/{function.__name__}`** (`{', '.join(names)}`): {said}")
    gr.HTML(parts.brand())
    gr.Markdown("\n".join(["## For programs", *listed]), elem_id="api")
    # Not gr.Code: its colours are too pale to read.
    example = _EXAMPLE.replace("WHERE", os.environ.get("SPACE_ID") or "http://127.0.0.1:7860")
    gr.HTML(f'<pre class="ts-code" tabindex="0" aria-label="From Python">{esc(example)}</pre>')
