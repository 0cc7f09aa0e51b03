"""Signing in with Hugging Face on a Space, in a real browser, against an OpenID provider of our own."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, BrowserContext, Page, expect

from service.spaces import Wish, write_folder
from tests.hub_server import HubServer
from tests.ui.space_run import running
from ui.screenshots import CHROMIUM, browser

if not CHROMIUM.exists():
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

SLOW_MS = 120_000


@pytest.fixture(scope="module")
def hub_of_space(small_model: Path) -> Iterator[HubServer]:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with HubServer() as server:
        server.add_model("forge/small", small_model)
        yield server


@pytest.fixture(scope="module")
def url(hub_of_space: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("space") / "app"
    write_folder(Wish("smith/tricksmith", history="none"), folder)
    with running(folder, hub_of_space, tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport={"width": 1280, "height": 900})
    made.set_default_timeout(SLOW_MS)
    yield made
    made.close()


def sign_in(page: Page, name: str) -> None:
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.get_by_label("Who are you?").fill(name)
    page.get_by_role("button", name="Authorize").click()
    expect(page.get_by_role("button", name=f"Logout ({name})")).to_be_visible(timeout=SLOW_MS)


def plan(page: Page, url: str, model: str = "forge/small") -> None:
    page.goto(url)
    page.get_by_label("Model", exact=True).fill(model)
    page.get_by_role("button", name="Show plan").click()
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)


def test_sign_in_convert_and_nobody_else_sees_it(
    context: BrowserContext, chromium: Browser, url: str, hub_of_space: HubServer
) -> None:
    page = context.new_page()
    plan(page, url)
    page.locator("#submit").click()
    expect(page.locator("#problem")).to_contain_text("sign in")

    # What was typed is there after the way to the Hub and back.
    page.get_by_label("Destination").fill("ann/mine")
    page.get_by_label("Private repo").check()
    sign_in(page, "ann")
    assert "trick=flashnorm" in page.url
    expect(page.get_by_label("Model", exact=True)).to_have_value("forge/small")
    expect(page.get_by_label("Destination")).to_have_value("ann/mine")
    expect(page.get_by_label("Private repo")).to_be_checked()
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    page.locator("#submit").click()
    page.wait_for_url("**/job?id=*")
    address = page.url
    expect(page.locator(".ts-pill")).to_have_text("published", timeout=SLOW_MS)
    assert hub_of_space.repo("ann/mine").private
    asked = {r.user for r in hub_of_space.requests if r.method in ("POST", "PUT") and "/api/" in r.path}
    assert asked <= {"ann", None}

    with chromium.new_context() as other:
        other.set_default_timeout(SLOW_MS)
        stranger = other.new_page()
        for name in (None, "bob"):
            if name:
                stranger.goto(url)
                sign_in(stranger, name)
            stranger.goto(f"{url}/jobs")
            expect(stranger.locator("#jobs")).to_contain_text("No jobs yet")
            stranger.goto(address)
            expect(stranger.get_by_role("alert").filter(has_text="no job")).to_be_visible()
            expect(stranger.locator("body")).not_to_contain_text("ann/mine")


_EARLY = """
const type = () => {
  const field = document.querySelector('#model input');
  if (!field) return setTimeout(type, 0);
  field.focus();
  for (const key of 'forge/') {
    field.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    field.value += key;
    field.dispatchEvent(new InputEvent('input', { bubbles: true }));
    field.dispatchEvent(new KeyboardEvent('keyup', { key, bubbles: true }));
  }
};
type();
"""


def test_models_are_suggested_and_folders_are_not(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.add_init_script(_EARLY)  # as soon as there is a field, before the page is ready
    page.goto(url)
    page.get_by_role("option", name="forge/small").click()
    expect(page.locator("#plan")).to_contain_text("proven in float64", timeout=SLOW_MS)
    expect(page).to_have_url(re.compile("model=forge"))
    expect(page.get_by_text("A folder of this machine")).to_have_count(0)


def test_enter_takes_what_was_typed_or_what_an_arrow_key_led_to(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.goto(url)
    model, found = page.get_by_label("Model", exact=True), page.get_by_role("option", name="forge/small")
    model.press_sequentially("forge/smal")
    expect(found).to_be_visible()
    model.press("Enter")
    expect(page.locator("#facts")).to_contain_text("forge/smal is not on the Hub", timeout=SLOW_MS)
    expect(page.locator("#facts")).to_contain_text("or sign in with an account that may read it")
    expect(model).to_have_value("forge/smal")
    model.press("ArrowDown")
    model.press("Enter")
    expect(page.locator("#facts h2")).to_contain_text("forge/small", timeout=SLOW_MS)
    expect(model).to_have_value("forge/small")


PAGES = ("", "jobs", "compare", "gallery", "watches", "programs", "job?id=ab12")


def test_every_page_is_of_use_to_somebody_who_is_not_signed_in(
    context: BrowserContext, url: str, hub_of_space: HubServer
) -> None:
    page = context.new_page()
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("response", lambda said: failed.append(said.url) if said.status >= 500 else None)
    for path in PAGES:
        page.goto(f"{url}/{path}")
        expect(page.get_by_role("heading", name="Tricksmith", exact=True)).to_be_visible(timeout=SLOW_MS)
        page.wait_for_timeout(700)  # for what is asked for once the page is there
        expect(page.locator(".toast-wrap .error")).to_have_count(0)
        shown = page.locator("body").inner_text()
        assert "Traceback" not in shown
        assert "HF_TOKEN" not in shown, "advice that a visitor cannot follow"
    assert not failed
    assert not [r for r in hub_of_space.requests if r.user == "smith"], "nobody asks as this machine's owner"


def test_a_sign_in_that_ends_midway_or_may_do_too_much(
    context: BrowserContext, url: str, hub_of_space: HubServer
) -> None:
    page = context.new_page()
    page.goto(url)
    hub_of_space.sign_in_s = 3
    sign_in(page, "cy")
    ends = time.monotonic() + hub_of_space.sign_in_s
    plan(page, url)
    page.get_by_label("Destination").fill("cy/kept")
    page.wait_for_timeout(max(0.0, ends - time.monotonic()) * 1000)
    page.locator("#submit").click()
    expect(page.locator("#problem")).to_contain_text("sign-in has ended")

    # The button offers another sign-in, and nothing that was typed is lost.
    hub_of_space.sign_in_s = 8 * 3600
    hub_of_space.granted_scopes = "openid profile contribute-repos gated-repos write-repos"
    sign_in(page, "cy")
    expect(page.get_by_label("Destination")).to_have_value("cy/kept")
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    page.locator("#submit").click()
    expect(page.locator("#problem")).to_contain_text("may do more than Tricksmith should (write-repos)")
    hub_of_space.granted_scopes = None
    assert "cy/kept" not in hub_of_space.repos
    page.goto(f"{url}/jobs")
    expect(page.locator("#jobs")).to_contain_text("No jobs yet")
