"""Watches: rules that convert new releases by themselves. Only this installation's operator makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from service.api import Service
from service.watch_store import WatchStore
from service.watches import Kind, Watch
from tricks import TricksmithError
from ui.pages import parts
from ui.pages.escape import breakable, esc, when
from ui.pages.visitor import visitor
from ui.pages.watch_actions import WatchActions, check_operator
from ui.pages.words import in_order
from ui.text import duration

_LONGEST = 300


@dataclass(frozen=True)
class Handlers:
    """What the page's buttons do; each answers (list, answer, the choice of watches)."""

    service: Service

    @property
    def actions(self) -> WatchActions:
        """What can be done with them."""
        return WatchActions(self.service)

    @property
    def store(self) -> WatchStore:
        """The watches."""
        return self.service.watches

    def guarded(self, action: Callable[[], str], request: gr.Request) -> tuple[str, str, Any]:
        """(list, answer, the choice of watches) after an action."""
        try:
            check_operator(visitor(request))
        except TricksmithError as error:
            return "", parts.problem(str(error)), gr.update(choices=[])
        try:
            said = action()
        except TricksmithError as error:
            said = parts.problem(str(error))
        found = self.store.all()
        choices = [(f"{watch.name} ({watch.id})", watch.id) for watch in found]
        return _table(self.service, found), said, gr.update(choices=choices)

    def save(
        self, watch_id: str, kind: str, target: str, tricks: list[str], to: str, every: float, per_day: float,
        private: bool, request: gr.Request,
    ) -> tuple[str, str, Any]:  # fmt: skip
        """Keep what the fields say: a new watch, or the chosen one changed."""

        def act() -> str:
            # The form has no fields for a trick's options: those that the watch has stay.
            former = self.store.get(watch_id).tricks if watch_id else ()
            written = {text.partition(":")[0]: text for text in former}
            recipe = [written.get(name, name) for name in tricks or []]
            made = self.actions.save(watch_id, kind, target, recipe, to, every, per_day, private)
            return f'<p role="status">Saved: {breakable(made.name)}. “Dry run” shows what it would do.</p>'

        return self.guarded(act, request)

    def pause(self, watch_id: str, request: gr.Request) -> tuple[str, str, Any]:
        """Pause the watch, or go on with it."""

        def act() -> str:
            return f'<p role="status">{"Paused" if self.actions.pause(watch_id or "") else "Resumed"}.</p>'

        return self.guarded(act, request)

    def remove(self, watch_id: str, request: gr.Request) -> tuple[str, str, Any]:
        """Forget the watch."""

        def act() -> str:
            self.actions.remove(watch_id or "")
            return '<p role="status">Removed; its jobs stay.</p>'

        return self.guarded(act, request)

    def dry_run(self, watch_id: str, request: gr.Request) -> tuple[str, str, Any]:
        """What the watch would do now."""
        return self.guarded(
            lambda: _decisions(self.actions.dry_run(watch_id or ""), "Nothing would be done."), request
        )

    def history(self, watch_id: str, request: gr.Request) -> tuple[str, str, Any]:
        """What the watch decided."""
        return self.guarded(
            lambda: _decisions(self.actions.history(watch_id or ""), "Nothing decided yet."), request
        )

    def load(self, watch_id: str, request: gr.Request) -> list[Any]:
        """The chosen watch in the fields."""
        try:
            check_operator(visitor(request))
            watch = self.store.get(watch_id or "")
        except TricksmithError:
            return [gr.skip()] * 7
        names = [trick.partition(":")[0] for trick in watch.tricks]
        return [
            watch.kind.value,
            watch.target,
            names,
            watch.to,
            watch.every / 60,
            watch.per_day,
            watch.private,
        ]

    def opened(self, request: gr.Request) -> tuple[str, str, Any]:
        """The page as it is first seen."""
        return self.guarded(lambda: "", request)


def build(page: gr.Blocks, service: Service) -> None:
    """Lay out the page in the current Blocks."""
    on = Handlers(service)
    gr.HTML(parts.brand())
    table = gr.HTML(elem_id="watches")
    chosen = gr.Dropdown(choices=[], value=None, label="Watch", info="None: a new one", elem_id="watch")
    with gr.Row(elem_classes="ts-actions"):
        dry = gr.Button("Dry run", elem_id="dry-run")
        past = gr.Button("History", elem_id="history")
        rest = gr.Button("Pause or resume", elem_id="pause")
        drop = gr.Button("Remove", variant="stop", elem_id="remove")
    with gr.Row():
        kind = gr.Radio(
            [each.value for each in Kind], value=Kind.AUTHOR.value, label="What is watched", min_width=280
        )
        target = gr.Textbox(
            label="Its name",
            info="A user, a Hub id, a collection, or words",
            max_length=_LONGEST,
            min_width=280,
        )
    with gr.Row():
        tricks = gr.CheckboxGroup(in_order(), value=["flashnorm"], label="Tricks", min_width=280)
        to = gr.Textbox(label="Destination", info="A namespace of yours", max_length=_LONGEST, min_width=280)
    with gr.Row():
        every = gr.Number(15, label="Looked at every so many minutes", minimum=1, precision=0)
        per_day = gr.Number(20, label="Jobs a day at most", minimum=1, precision=0)
        private = gr.Checkbox(label="Private repos")
    with gr.Row(elem_classes="ts-actions"):
        keep = gr.Button("Save", variant="primary", elem_id="save")
    answer = gr.HTML(elem_id="answer")

    fields = [kind, target, tricks, to, every, per_day, private]
    shown = [table, answer, chosen]
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 4, "api_visibility": "private"}

    page.load(on.opened, None, shown, **quiet)
    chosen.input(on.load, chosen, fields, **quiet)
    keep.click(on.save, [chosen, *fields], shown, **quiet)
    for button, action in ((dry, on.dry_run), (past, on.history), (rest, on.pause), (drop, on.remove)):
        button.click(action, chosen, shown, **quiet)


def _table(service: Service, found: list[Watch]) -> str:
    if not found:
        return parts.hint(
            "No watches yet. One converts the new releases of an author, a model or a collection."
        )
    rows = "".join(_row(service, watch) for watch in found)
    return (
        '<div class="ts-scroll" tabindex="0" role="region" aria-label="Watches"><table class="ts-table">'
        '<thead><tr><th scope="col">Watch</th><th scope="col">Converts to</th><th scope="col">Every</th>'
        '<th scope="col">Last look</th><th scope="col">State</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(service: Service, watch: Watch) -> str:
    state = service.watches.state(watch.id)
    said = f"paused: {state['paused']}" if state.get("paused") else state.get("error") or "watching"
    looked = when(state["polled"]) if state.get("polled") else "not yet"
    return (
        f"<tr><td>{breakable(watch.name)}</td><td>{breakable(watch.to)}, {esc(', '.join(watch.tricks))}</td>"
        f"<td>{esc(duration(watch.every))}</td><td>{looked}</td><td>{breakable(str(said))}</td></tr>"
    )


def _decisions(told: list[dict[str, Any]], none: str) -> str:
    items = "".join(
        f"<li><b>{breakable(str(each['model']))}</b>: {esc(each['outcome'])}"
        f"{'; ' + breakable(str(each['reason'])) if each.get('reason') else ''}"
        f"{' → ' + breakable(str(each['to'])) if each.get('to') else ''}"
        f"{' · ' + when(each['at']) if each.get('at') else ''}</li>"
        for each in told
    )
    return (
        f'<ul class="ts-decisions" role="status">{items}</ul>'
        if items
        else f'<p role="status">{esc(none)}</p>'
    )
