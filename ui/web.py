"""The web pages as one Gradio app: `/` one model, `/job?id=...` one job, `/jobs` the latest ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

# Before Gradio is imported: nothing of a user's work goes to anybody unasked.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.components import Navbar
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import Scope

from service.api import Service
from tricks import BadInput
from ui.assets import Assets
from ui.door import Door, Rates, address
from ui.live import add_live
from ui.pages import api, compare, explore, gallery, job, jobs, watches
from ui.pages.guard import is_loopback
from ui.pages.live import Live
from ui.pages.script import HEAD
from ui.pages.theme import CSS, THEME
from ui.pages.visitor import visitor
from ui.preload import FRONTEND, Frontend, shown_types
from ui.sign_in import SignIn

_HOME = "Explore"


def build(service: Service, *, folders: bool, gpu: api.Gpu | None = None) -> gr.Blocks:
    """All pages. `folders`: whether visitors may name paths of this machine."""
    app: gr.Blocks = gr.Blocks(title="Tricksmith", analytics_enabled=False)
    with app:
        Navbar(main_page_name=_HOME)
        explore.build(app, service, folders=folders)
    with app.route("Queue", "/jobs"):
        Navbar(main_page_name=_HOME)
        jobs.build()
    with app.route("Compare", "/compare") as page:
        Navbar(main_page_name=_HOME)
        compare.build(page, service)
    with app.route("Gallery", "/gallery") as page:
        Navbar(main_page_name=_HOME)
        gallery.build(page, service)
    with app.route("Watches", "/watches") as page:
        Navbar(main_page_name=_HOME)
        watches.build(page, service)
    with app.route("API", "/programs"):
        Navbar(main_page_name=_HOME)
        api.build(service, folders=folders, gpu=gpu)
    with app.route("Job", "/job", show_in_navbar=False):
        Navbar(main_page_name=_HOME)
        job.build(service)
    return app


def _rates(service: Service, host: str) -> Rates | None:
    each = 0 if is_loopback(host) else service.settings.requests_per_second
    # A page brings some fifty files along when it is opened.
    return Rates(each, 60 + 10 * each) if each else None


def _who(scope: Scope) -> str:
    """Whoever is signed in counts by name, from wherever; others by their address."""
    name = visitor(Request(scope)).name
    return address(scope) if name is None else f"user {name}"


def _needed(app: gr.Blocks) -> Callable[[str], list[str]]:
    """The frontend's files that the page at a path opens with; none where there is no page."""
    frontend = Frontend()

    @cache
    def found(page: str) -> list[str]:
        return frontend.needed(shown_types(app.config, page))

    return lambda path: found(path[1:]) if path[1:] in app.config["page"] else []


def launch(service: Service, host: str, port: int, gpu: api.Gpu | None = None) -> gr.Blocks:
    """Serve the pages from a thread of this process; returns the app, to be closed.

    Raises:
        BadInput: the address cannot be listened on.
    """
    app = build(service, folders=is_loopback(host), gpu=gpu)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            theme=THEME,
            css=CSS,
            head=HEAD,
            footer_links=["api"],
            ssr_mode=False,
            app_kwargs={
                "middleware": [
                    Middleware(Door, _rates(service, host), who=_who),
                    Middleware(Assets, FRONTEND / "assets", _needed(app)),
                    Middleware(SignIn),
                ]
            },
        )
    except OSError as error:
        raise BadInput(f"cannot listen on {host}:{port} ({error}); choose another --port or --host") from None
    add_live(app.app, Live(service))
    return app
