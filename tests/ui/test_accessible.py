"""axe-core on every page, in both themes and at a phone's width; nothing serious may be found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect

from service.api import Service
from service.settings import Settings
from ui.screenshots import CHROMIUM, browser, served

if not CHROMIUM.exists():
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

_AXE = Path(__file__).parent / "axe" / "axe.min.js"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with served(data) as address:
        yield address


@pytest.fixture(scope="module")
def finished(url: str, data: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a job that was published."""
    with Service(Settings(data=data)) as service:
        out = tmp_path_factory.mktemp("made") / "small-FlashNorm"
        job = service.submit(str(small_model), ["flashnorm"], str(out))
        return f"{url}/job?id={job.id}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def serious(page: Page) -> list[str]:
    page.add_script_tag(path=str(_AXE))
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['html'][:160]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_nothing_serious_on_any_page(
    chromium: Browser, url: str, model: Path, theme: str, width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    problems = []
    for path in (
        f"/?model={model}&trick=flashnorm",
        "/jobs",
        "/compare",
        "/gallery",
        "/watches",
        "/programs",
        "/job?id=x",
    ):
        page.goto(f"{url}{path}{'&' if '?' in path else '?'}__theme={theme}")
        page.locator(".ts-brand, #api").first.wait_for()
        if "model" in path:
            page.wait_for_selector(".ts-plan", timeout=60_000)
        page.wait_for_timeout(500)
        problems += [f"{path} {problem}" for problem in serious(page)]
        wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        problems += [f"{path} is {wide} px too wide"] if wide > 0 else []
    page.close()
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_serious_on_a_finished_job(chromium: Browser, finished: str, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    for theme in ("light", "dark"):
        page.goto(f"{finished}&__theme={theme}")
        expect(page.locator(".ts-pill")).to_have_text("published", timeout=120_000)
        for piece in ("#outcome h2", "#plan h2", "#picture img", "#card h1"):
            expect(page.locator(piece).first).to_be_visible(timeout=60_000)
        assert not serious(page), theme
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), theme
    page.close()
