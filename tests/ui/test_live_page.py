"""A job's page stays live, whatever happens to the connection or the web process, and moves nothing about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect

from service.api import Service
from service.jobs import JobStore, Stage, State
from service.redis_server import running_redis
from service.settings import Settings
from ui.screenshots import CHROMIUM, browser, free_port, served

if not CHROMIUM.exists():
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

SLOW_MS = 120_000
EVIL = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
_SHIFTS = """
window.moved = 0;
new PerformanceObserver((list) => {
  if (document.querySelector('.ts-pill')?.textContent !== 'running') return;
  for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.moved += shift.value;
}).observe({type: 'layout-shift', buffered: true});
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def test_a_job_page_outlives_its_connection_and_its_server(
    chromium: Browser, small_model: Path, model: Path, tmp_path: Path
) -> None:
    data, port = tmp_path / "data", free_port()
    context = chromium.new_context(timezone_id="Asia/Kolkata", locale="en-GB")
    page = context.new_page()
    page.add_init_script(_SHIFTS)
    lost, state = page.locator(".ts-lost"), page.locator(".ts-pill")
    with Service(Settings(data=data)) as service:
        with served(data, port=port) as url:
            job = service.submit(str(model), ["flashnorm"], str(tmp_path / "out"))
            page.goto(f"{url}/job?id={job.id}")
            page.evaluate("() => { window.opened = 1; }")
            expect(page.locator("#stages li")).to_have_count(6, timeout=SLOW_MS)
            context.set_offline(True)
            expect(lost).to_be_visible(timeout=SLOW_MS)
            context.set_offline(False)
            expect(lost).to_be_hidden(timeout=SLOW_MS)
            expect(state).to_have_text("published", timeout=SLOW_MS)
            expect(page.locator("#card h1")).to_be_visible(timeout=SLOW_MS)
            # Google's bound for a page that does not jump, though the connection came and went.
            assert page.evaluate("() => window.moved") < 0.1
            shown = page.locator("#live time").first
            at = datetime.fromtimestamp(job.created, UTC).astimezone(ZoneInfo("Asia/Kolkata"))
            expect(shown).to_contain_text(f"{at:%H:%M}")

            # One more job than the worker gets to before the web process ends.
            second = service.submit(str(small_model), ["flashnorm"], str(tmp_path / "second"))
            page.goto(f"{url}/job?id={second.id}")
            page.evaluate("() => { window.opened = 2; }")
        expect(lost).to_be_visible(timeout=SLOW_MS)
        with served(data, port=port):
            expect(lost).to_be_hidden(timeout=SLOW_MS)
            expect(state).to_have_text("published", timeout=SLOW_MS)
            assert page.evaluate("() => window.opened") == 2  # the same page all along
    context.close()


def test_what_a_job_tells_is_never_run(chromium: Browser, tmp_path: Path) -> None:
    data = tmp_path / "data"
    page = chromium.new_page()
    with running_redis(Settings(data=data)) as redis, served(data) as url:
        store = JobStore(redis)
        source = {"model": EVIL, "commit": "0" * 40, "size_bytes": 1}
        job, _ = store.create(model=EVIL, tricks=[EVIL], to=EVIL, source=source, key="evil")
        store.begin(job.id, "us", 600.0)
        store.stage(job.id, "us", Stage.CONVERT, EVIL)
        store.lay_down(job.id, "us", "card", f"# A card\n\n{EVIL}\n\n[x](javascript:alert(1)) `{EVIL}`")
        store.progress(job.id, "us", Stage.CONVERT, EVIL, 1, 2)
        store.finish(job.id, "us", State.FAILED, reason=EVIL)
        for path in (f"/job?id={job.id}", "/jobs", f"/job?id={EVIL}", f"/compare?job={EVIL}&id={EVIL}"):
            page.goto(url + path)
            expect(page.locator("#live, #jobs, #sides").first).to_contain_text(
                re.compile("script|no job|comparison is gone"), timeout=SLOW_MS
            )
            if path.endswith(job.id):
                expect(page.locator("#card h1")).to_be_visible(timeout=SLOW_MS)
                expect(page.locator("#outcome")).to_contain_text("<script>")
            assert page.evaluate("() => window.pwned") is None
            assert page.locator("#card img, #card script, #live script, #jobs img").count() == 0
            assert page.locator("#card [href^='javascript' i]").count() == 0
        store.close()
    page.close()
