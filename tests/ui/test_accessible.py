"""axe-core on every page, in both themes and at a phone's width; nothing serious may be found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page

from ui.screenshots import CHROMIUM, browser, served

if not CHROMIUM.exists():
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

_AXE = Path(__file__).parent / "axe" / "axe.min.js"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("data")) as address:
        yield address


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
