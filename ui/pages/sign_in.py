"""The sign-in button, and what was typed on the way to the Hub and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from service.settings import signs_in
from ui.pages.visitor import visitor

_SIGN_IN = "Sign in with Hugging Face"
# Gradio's button leaves the page half a second after it was pressed.
_KEEP = "(...values) => { window.sessionStorage.setItem('draft', JSON.stringify(values)); }"
_RESTORE = """() => {
  const kept = window.sessionStorage.getItem('draft');
  window.sessionStorage.removeItem('draft');
  return kept ? JSON.parse(kept) : Array(COUNT).fill({ __type__: 'update' });
}"""


def build() -> gr.LoginButton | None:
    """The button, where visitors sign in."""
    return gr.LoginButton(_SIGN_IN, elem_id="sign-in") if signs_in() else None


def keep_draft(page: gr.Blocks, button: gr.LoginButton, fields: Sequence[gr.components.Component]) -> None:
    """What stands in `fields` stands there again after a sign-in."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    button.click(None, [*fields], None, js=_KEEP, **quiet)
    page.load(None, None, [*fields], js=_RESTORE.replace("COUNT", str(len(fields))), **quiet)


def relabel(request: gr.Request) -> Any:
    """The button of somebody whose sign-in has ended since the page was opened: it offers another."""
    grant = visitor(request).grant
    return gr.skip() if grant is not None and grant.lasts else gr.update(value=_SIGN_IN)
