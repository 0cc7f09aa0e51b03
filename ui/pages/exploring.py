"""What the first page's fields and buttons do: see what a model has to gain, and ask for its conversion."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from service.api import Service
from service.evidence_request import EvidenceRequest
from service.explore import QUICK, Explored
from tricks import TRICKS, BadInput, Plan, TricksmithError
from ui.pages import charts, found, options, parts
from ui.pages.guard import check_folders
from ui.pages.visitor import visitor

FIRST = ("flashnorm",)
"""The tricks that are chosen where nobody chose."""
LONGEST = 300
"""Characters of a model's or a destination's name."""
_OURS = "something broke on our side; what you typed is kept: try again, or see the server's log"
_READING = "Reading config and headers …"
_PROVING = "Proving the plan on a small model of the same class …"
_SAME: list[Any] = [gr.skip()] * 7
"""Facts, wiring, cards and plots, left as they are."""
_NO_CACHE: list[Any] = [gr.update(visible=False)] * 2
"""Batch and cache chart, hidden: drawn before all of its lines are known, Gradio's chart keeps to those."""
_NOTHING: list[Any] = ["", "", *[gr.update(visible=False)] * 4]
"""Wiring, cards and plots, gone: they were of another model."""
_REST: list[Any] = [gr.skip()] * 5
"""Plan, problem, button, address and what was seen, left as they are."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handlers:
    """What the page's fields and buttons do."""

    service: Service
    folders: bool
    options: options.Options

    def suggest(self, typed: str | None) -> Any:
        """Models whose name holds what was typed so far."""
        words = typed or ""
        if len(words.strip()) < 2 or words.startswith((".", "/", "~")):
            return gr.skip()
        try:
            hits = self.service.search(words)
        except TricksmithError:
            return gr.skip()  # suggestions are a convenience: the name can be typed all the same
        # Names alone: a choice's words stay in the field, where somebody may add a revision to them.
        return gr.update(choices=[hit.model for hit in hits])

    def show(self, batch: str, model: str, chosen: list[str], *values: Any) -> Iterator[list[Any]]:
        """All that is shown, step by step: what headers tell, the plan with its proof, the other tricks."""
        asker, off = visitor(values[-1]), gr.update(interactive=False)
        seen: Explored | None = None

        def refused(words: str) -> list[Any]:
            """Said where the answer was expected, what is known of the model left to stand."""
            said = parts.problem(words)
            there = [said, *_NOTHING, ""] if seen is None else [*_SAME, said]
            return [*there, "", off, "", gr.skip()]

        try:
            model, recipe = self._asked(model, chosen, values[:-1])
            check_folders(self.folders, model=model)
            yield [parts.waiting(_READING), *_SAME[1:4], *_NO_CACHE, _SAME[6], "", "", off, "", None]
            seen = self.service.explore(model, asker.token, looked_at(recipe, chosen))
            at = address(model, recipe)
            deep = (seen.figures.layers or 0) > found.DEEPEST
            every = looked_at(recipe, [*QUICK, *chosen] if deep else TRICKS)
            more = len(every) > len(seen.looks)
            first = self._first(seen, int(batch))
            if more:
                first[4:6] = _NO_CACHE
            yield [*first, parts.waiting(_PROVING), "", off, at, seen]
            ready = self.service.preflight(model, recipe, asker.token)
            plan = parts.plan_view(ready.plan) + found.before(ready)
            yield [*_SAME, plan, "", gr.update(interactive=ready.plan.fits), gr.skip(), gr.skip()]
            if more:
                seen = self.service.explore(model, asker.token, every)
                yield [*self._first(seen, int(batch)), *_REST[:-1], seen]
        except TricksmithError as error:
            yield refused(str(error))
        except Exception:
            log.exception("planning %r failed", model)
            yield refused(_OURS)

    def estimate(self, model: str, recipe: str, request: gr.Request) -> str:
        """How long conversion and evidence would take, in words; nothing while that is not known."""
        try:
            model = str(model or "").strip()
            check_folders(self.folders, model=model)
            asker = visitor(request)
            seconds = self.service.estimate(model, EvidenceRequest(recipe), asker.token)
        except TricksmithError:
            return ""  # what is wrong is said where the plan is asked for
        return found.takes(seconds)

    def _first(self, seen: Explored, batch: int) -> list[Any]:
        plans = _fitting(seen)
        return [
            found.facts(seen),
            found.wiring(seen),
            found.cards(seen),
            charts.bars(charts.weights(seen)),
            gr.update(visible=seen.figures.cache_per_token is not None),
            charts.lines(charts.cache(seen.figures, plans, batch)),
            charts.bars(charts.reads(plans)),
        ]

    def rebatch(self, batch: str, seen: Explored | None) -> Any:
        """The cache chart at another batch size."""
        if seen is None:
            return gr.skip()
        plans = _fitting(seen)
        return charts.lines(charts.cache(seen.figures, plans, int(batch)))

    def submit(
        self,
        planned: str,
        model: str,
        chosen: list[str],
        to: str,
        pr: bool,
        private: bool,
        evidence: str,
        *values: Any,
    ) -> tuple[str, str]:
        """(job id, problem); one of the two is empty."""
        try:
            model, recipe = self._asked(model, chosen, values[:-1])
            if planned != address(model, recipe):
                raise BadInput("the request has changed since its plan was shown; “Show plan” again")
            asker = visitor(values[-1])
            asker.check_signed_in()
            to = (to or "").strip()
            if not to and asker.operator:
                raise BadInput("no destination; give NAMESPACE/NAME on the Hub, or a folder")
            check_folders(self.folders, model=model, **({"to": to} if to else {}))
            asked = EvidenceRequest(evidence)
            job = self.service.submit(
                model, recipe, to or None, pr=pr, private=private, grant=asker.grant, evidence=asked
            )
            return job.id, ""
        except TricksmithError as error:
            return "", parts.problem(str(error))
        except Exception:
            log.exception("submitting %r failed", model)
            return "", parts.problem(_OURS)

    def _asked(self, model: str, chosen: list[str], values: tuple[Any, ...]) -> tuple[str, list[str]]:
        model = str(model or "").strip()
        if not model:
            raise BadInput("no model; give a Hub id such as HuggingFaceTB/SmolLM2-135M")
        if len(model) > LONGEST:
            raise BadInput(f"this name has {len(model):,} characters; a Hub id has up to 200")
        if not chosen:
            raise BadInput("no trick is chosen; choose one or more")
        return model, self.options.recipe(chosen, values)

    def opened(self, request: gr.Request) -> list[Any]:
        """(whether the address names a model, and then: model, tricks, option values, groups) of it."""
        query = request.query_params
        model = str(query.get("model", ""))[:LONGEST]
        if not model:
            return [False] + [gr.skip()] * (2 + len(self.options.fields) + len(self.options.groups))
        recipe = [text[:LONGEST] for text in query.getlist("trick")] or list(FIRST)
        chosen, values = self.options.values(recipe)
        return [True, model, chosen, *values, *self.options.shown(chosen)]


def looked_at(recipe: Sequence[str], names: Collection[str]) -> list[str]:
    """The tricks named, in the order in which they are listed everywhere, with their options in `recipe`."""
    asked = {text.partition(":")[0]: text for text in recipe}
    return [asked.get(name, name) for name in TRICKS if name in names]


def _fitting(seen: Explored) -> list[tuple[str, Plan]]:
    return [(look.trick.name, look.plan) for look in seen.looks if look.plan is not None and look.fits]


def address(model: str, recipe: list[str]) -> str:
    """The shared address of a model and recipe, from its question mark on."""
    return "?" + urlencode([("model", model), *(("trick", text) for text in recipe)])
