"""The web pages in a real browser, against a real `tricksmith serve` with its Redis and worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, Route, expect

from ui.screenshots import CHROMIUM, browser, served

if not CHROMIUM.exists():
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

SLOW_MS = 120_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("data")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """A fresh page that fails the test when it asks for anything outside this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    outside: list[str] = []
    context.on(
        "request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else outside.append(r.url)
    )
    fresh = context.new_page()
    yield fresh
    context.close()
    assert not outside


def fill(page: Page, url: str, model: str, to: str = "") -> None:
    page.goto(url)
    page.get_by_label("Model", exact=True).fill(model)
    if to:
        page.get_by_label("Destination").fill(to)
    page.get_by_role("button", name="Show plan").click()


def test_from_form_to_card(page: Page, url: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    page.goto(url)
    convert = page.get_by_role("button", name="Convert")
    expect(convert).to_be_disabled()

    fill(page, url, str(model), str(out))
    plan = page.locator("#plan")
    expect(plan).to_contain_text("LlamaForCausalLM", timeout=SLOW_MS)
    expect(plan).to_contain_text("input_layernorm")
    expect(plan).to_contain_text("proven in float64")
    expect(convert).to_be_enabled()
    # Every trick's line, whichever came first.
    expect(page.locator("#chart-cache")).to_contain_text("slim", timeout=SLOW_MS)

    convert.click()
    page.wait_for_url("**/job?id=*", timeout=SLOW_MS)
    page.reload()
    expect(page.locator("#stages li")).to_have_count(6, timeout=SLOW_MS)
    # Live: without another reload the state moves on to its end, and the card appears.
    expect(page.locator(".ts-pill")).to_have_text("published", timeout=SLOW_MS)
    expect(page.locator("#outcome")).to_contain_text("Equivalent")
    expect(page.locator("#outcome")).to_contain_text("perplexity")
    expect(page.locator("#card h1")).to_be_visible()
    assert (out / "README.md").is_file()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()

    page.goto(f"{url}/jobs")
    expect(page.locator("#jobs tbody tr").first).to_contain_text("published")
    page.locator("#jobs tbody a").first.click()
    expect(page.locator("#outcome")).to_contain_text("Equivalent", timeout=SLOW_MS)

    # Both models write, and a reload shows the same again.
    page.get_by_role("link", name="side by side").click()
    page.get_by_label("Prompt").fill("The function returns")
    page.get_by_label("New tokens").first.fill("6")
    page.get_by_role("button", name="Compare").click()
    said = page.locator("#sides [role=status]")
    expect(said).to_contain_text("same 6 tokens", timeout=SLOW_MS)
    expect(page.locator("#sides")).to_contain_text("tokens per second")
    page.reload()
    expect(said).to_contain_text("same 6 tokens", timeout=SLOW_MS)
    expect(page.get_by_label("Prompt")).to_have_value("The function returns")

    page.goto(f"{url}/gallery")
    expect(page.locator("#gallery article")).to_have_count(1)
    expect(page.locator("#gallery article")).to_contain_text("perplexity")
    page.get_by_label("Name holds").fill("no such name")
    expect(page.locator("#gallery")).to_contain_text("Nothing here yet")


def test_cancel_and_retry(page: Page, url: str, small_model: Path, tmp_path: Path) -> None:
    fill(page, url, str(small_model), str(tmp_path / "out"))
    page.locator("#submit:enabled").click(timeout=SLOW_MS)
    page.wait_for_url("**/job?id=*", timeout=SLOW_MS)
    page.get_by_role("button", name="Cancel").click(timeout=SLOW_MS)
    expect(page.locator("#outcome")).to_contain_text("Cancelled", timeout=SLOW_MS)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".ts-pill")).to_have_text("published", timeout=SLOW_MS)


def test_a_refusal_is_one_line_and_nothing_typed_is_lost(page: Page, url: str, tmp_path: Path) -> None:
    bad = f"{tmp_path}/<img src=x onerror=alert(1)>"
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    fill(page, url, bad, "you/name")
    expect(page.get_by_role("alert").filter(has_text="<img")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_label("Model", exact=True)).to_have_value(bad)
    expect(page.get_by_label("Destination")).to_have_value("you/name")
    expect(page.get_by_role("button", name="Convert")).to_be_disabled()
    # Where the plan was expected, in place of what says that it comes, and not below the form.
    expect(page.locator("#facts").get_by_role("alert")).to_be_in_viewport()
    expect(page.locator("#facts")).not_to_contain_text("Reading config")
    assert page.locator("#facts img").count() == 0
    assert not dialogs


def test_on_a_phone_the_plan_is_led_to(page: Page, url: str, small_model: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    with page.expect_response("**/queue/join*"):  # the page's own first question: it is ready
        page.goto(url)
    page.get_by_label("Model", exact=True).fill(str(small_model))
    page.get_by_role("button", name="Show plan").click()
    expect(page.locator("#facts h2")).to_be_in_viewport(timeout=SLOW_MS)


def test_a_changed_request_needs_a_new_plan(page: Page, url: str, model: Path) -> None:
    fill(page, url, str(model))
    expect(page.locator("#plan")).to_contain_text("LlamaForCausalLM", timeout=SLOW_MS)
    page.get_by_label("Model", exact=True).press_sequentially("x")
    page.get_by_label("Destination").focus()
    expect(page.locator("#plan")).to_contain_text("has changed")
    expect(page.get_by_role("button", name="Convert")).to_be_disabled()


_LOOKS = """
window.looks = 0;
new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach((node) => {
  if (node.textContent.includes('Reading config')) window.looks += 1;
}))).observe(document, {childList: true, subtree: true});
"""


def test_what_is_typed_before_the_page_is_ready_is_looked_at_once(
    page: Page, url: str, small_model: Path
) -> None:
    page.add_init_script(_LOOKS)
    held: list[Route] = []
    # The page's own first question, answered only once the plan is there.
    page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    fill(page, url, str(small_model))
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    with page.expect_request(lambda request: '"quick"],' in (request.post_data or ""), timeout=SLOW_MS):
        held[0].continue_()
    expect(page.locator("#submit")).to_be_enabled()
    assert page.evaluate("() => window.looks") == 1


def test_no_destination(page: Page, url: str, model: Path) -> None:
    fill(page, url, str(model))
    page.locator("#submit:enabled").click(timeout=SLOW_MS)
    expect(page.get_by_role("alert").filter(has_text="no destination")).to_be_visible()


@pytest.mark.parametrize("query", ["?id=nosuchjob", "?id=<script>alert(1)</script>", ""])
def test_a_job_that_is_not_there(page: Page, url: str, query: str) -> None:
    page.goto(f"{url}/job{query}")
    expect(page.get_by_role("alert").filter(has_text="no job")).to_be_visible()


def test_enter_in_the_model_field_shows_the_plan(page: Page, url: str, small_model: Path) -> None:
    page.goto(url)
    model = page.get_by_label("Model", exact=True)
    model.press_sequentially(str(small_model))
    model.press("Enter")
    expect(page.locator("#facts h2")).to_contain_text(small_model.name, timeout=SLOW_MS)
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    expect(page.locator("#show-plan")).to_be_focused()


_OUTER = "(at) => at.outerHTML.slice(0, 300)"


def tab_to(page: Page, selector: str, most: int = 60) -> None:
    """Press Tab until the focus is there."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"no way to {selector} by keyboard: {page.locator(selector).first.evaluate(_OUTER)}")


def test_a_conversion_by_keyboard_alone_and_a_thousand_presses(
    page: Page, url: str, small_model: Path, tmp_path: Path
) -> None:
    page.goto(url)
    page.locator("#model input").wait_for()
    tab_to(page, "#model input")
    page.keyboard.type(str(small_model))
    tab_to(page, "#show-plan")
    page.keyboard.press("Enter")
    expect(page.locator("#plan")).to_contain_text("LlamaForCausalLM", timeout=SLOW_MS)
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    tab_to(page, "#to textarea, #to input")
    page.keyboard.type(str(tmp_path / "by-keyboard"))
    tab_to(page, "#submit")
    # Whoever cannot wait, or whose script cannot.
    page.evaluate("() => { for (let i = 0; i < 1000; i++) document.querySelector('#submit').click(); }")
    page.keyboard.press("Enter")
    page.wait_for_url("**/job?id=*", timeout=SLOW_MS)
    expect(page.locator(".ts-pill")).to_have_text("published", timeout=SLOW_MS)
    page.goto(f"{url}/jobs")
    expect(page.locator("#jobs tr", has_text="by-keyboard")).to_have_count(1)


def test_the_back_button_leads_to_what_was_looked_at(
    page: Page, url: str, model: Path, small_model: Path
) -> None:
    fill(page, url, str(model))
    expect(page.locator("#facts")).to_contain_text(model.name, timeout=SLOW_MS)
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    page.get_by_label("Model", exact=True).fill(str(small_model))
    page.get_by_role("button", name="Show plan").click()
    expect(page.locator("#facts")).to_contain_text(small_model.name, timeout=SLOW_MS)
    expect(page.locator("#submit")).to_be_enabled(timeout=SLOW_MS)
    page.go_back()
    expect(page.locator("#facts")).to_contain_text(model.name, timeout=SLOW_MS)
    expect(page.get_by_label("Model", exact=True)).to_have_value(str(model))


def test_a_watch_is_made_changed_paused_and_removed(page: Page, url: str) -> None:
    page.goto(f"{url}/watches")
    page.get_by_label("Its name").fill("forge")
    page.get_by_label("Destination").fill("me")
    page.get_by_role("button", name="Save").click()
    row = page.locator("#watches tbody tr")
    expect(row).to_contain_text("watching", timeout=SLOW_MS)
    page.get_by_label("Watch", exact=True).click()
    page.get_by_role("option").first.click()
    expect(page.get_by_label("Its name")).to_have_value("forge")
    page.get_by_label("Jobs a day at most").fill("3")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#answer")).to_contain_text("Saved")
    expect(row).to_have_count(1)
    page.get_by_role("button", name="Pause or resume").click()
    expect(row).to_contain_text("paused: by hand")
    page.get_by_role("button", name="Dry run").click()
    expect(page.locator("#answer [role=alert]")).to_contain_text("Hub", timeout=SLOW_MS)  # there is none here
    page.get_by_role("button", name="History").click()
    expect(page.locator("#answer")).to_contain_text("Nothing decided yet")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#watches")).to_contain_text("No watches yet")
