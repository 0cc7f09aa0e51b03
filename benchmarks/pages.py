"""`make bench-pages`: how soon the pages answer, and how fresh 200 open job pages stay.

1. The first page, from the address typed to its model field ready, in Chromium.
2. The preview of a model of 400 layers (its shards are holes: only headers are read), from the click to the
   plan with its proof.
3. 200 open pages of one running job, whose driver tells progress ten times a second as a worker does and
   enters another stage every few seconds; half way somebody cancels it, and all pages get other buttons. Each
   page does what the real one's script does: it loads the page, holds Gradio's heartbeat stream open, asks
   the live address, and fetches plan, picture and card when they changed. One page
   more is in Chromium. The age of what a page shows is the time since the progress that it shows was told;
   it is taken just before each new answer, once all pages are open.

Writes benchmarks/results/pages.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from playwright.sync_api import Browser, Page

from benchmarks.deep import deep_model
from service.jobs import JobStore, Stage
from service.redis_server import running_redis
from service.settings import Settings
from ui.screenshots import browser, served

RESULTS = Path(__file__).parent / "results" / "pages.json"
TOLD_EVERY = 0.1  # seconds
STAGE_EVERY = 7.0  # seconds
RAMP = 20.0  # seconds in which the pages are opened
_SHOWN = re.compile(r"<small>([\d,]+) of")
_STAGES = (Stage.FETCH, Stage.CONVERT, Stage.VERIFY)


class Driver:
    """Plays the worker of one job: `done` counts the ticks of `TOLD_EVERY` since the start."""

    def __init__(self, url: str) -> None:
        self._store = JobStore(url)
        source = {"model": "someone/model", "commit": "0" * 40, "size_bytes": 1}
        job, _ = self._store.create(
            model="someone/model", tricks=["flashnorm"], to="someone/result", source=source, key="bench"
        )
        self.id, self.began, self._over = job.id, time.time(), threading.Event()
        self._store.begin(job.id, "bench", 3600.0)
        self._thread = threading.Thread(target=self._drive)

    def __enter__(self) -> Driver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._store.close()

    def cancel(self) -> None:
        """Ask for the job to be cancelled; it goes on all the same."""
        self._store.cancel(self.id)

    def told_at(self, shown: int) -> float:
        """The moment (unix seconds) at which this count was told."""
        return self.began + shown * TOLD_EVERY

    def _drive(self) -> None:
        number = -1
        while not self._over.wait(TOLD_EVERY):
            passed = time.time() - self.began
            if int(passed / STAGE_EVERY) != number:
                number = int(passed / STAGE_EVERY)
                self._store.stage(self.id, "bench", _STAGES[number % len(_STAGES)])
            done = int(passed / TOLD_EVERY)
            self._store.progress(self.id, "bench", _STAGES[number % len(_STAGES)], "tokens", done, 10**6)


class Viewer:
    """One open job page without a browser."""

    def __init__(self, client: httpx.AsyncClient, driver: Driver) -> None:
        self._client, self._driver = client, driver
        self._session = uuid.uuid4().hex[:12]
        self._later: asyncio.Task[None] | None = None
        self.ages: list[float] = []
        self.answers: list[float] = []

    async def open(self, settled: float, until: float) -> None:
        """Load the page, then stay; ages count from `settled` on."""
        (await self._client.get("/job", params={"id": self._driver.id})).raise_for_status()
        beat = asyncio.create_task(self._heartbeat())
        try:
            await self._papers()
            await self._live(settled, until)
        finally:
            beat.cancel()

    async def _heartbeat(self) -> None:
        async with self._client.stream("GET", f"/gradio_api/heartbeat/{self._session}") as stream:
            async for _ in stream.aiter_raw():
                pass

    async def _papers(self) -> None:
        answer = await self._client.get("/live/papers", params={"id": self._driver.id})
        answer.raise_for_status()

    async def _change(self) -> None:
        await asyncio.sleep(2 * random.random())
        await self._papers()

    async def _live(self, settled: float, until: float) -> None:
        seen, papers, shown = "", None, None
        while time.time() < until:
            began = time.time()
            answer = await self._client.get("/live/job", params={"id": self._driver.id, "seen": seen})
            now = time.time()
            if now > settled:
                self.answers.append(now - began)
            if answer.status_code == 200:
                told = answer.json()
                seen = told["version"]
                found = _SHOWN.search(told["stages"])
                if found:
                    if shown is not None and now > settled:
                        self.ages.append(now - self._driver.told_at(shown))
                    shown = int(found[1].replace(",", ""))
                if papers is not None and told["papers"] != papers:
                    self._later = asyncio.create_task(self._change())
                papers = told["papers"]
            await asyncio.sleep(1.0)


async def view(url: str, driver: Driver, pages: int, seconds: float) -> list[Viewer]:
    """`pages` open pages, all of them open for `seconds`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30.0) as client:
        viewers = [Viewer(client, driver) for _ in range(pages)]
        settled = time.time() + RAMP + 5.0
        until = settled + seconds

        async def one(number: int, viewer: Viewer) -> None:
            await asyncio.sleep(number * RAMP / pages)
            await viewer.open(settled, until)

        async def cancel() -> None:
            await asyncio.sleep(settled - time.time() + seconds / 2)
            await asyncio.to_thread(driver.cancel)

        await asyncio.gather(cancel(), *(one(number, viewer) for number, viewer in enumerate(viewers)))
    return viewers


_WATCH = """() => {
  window.shown = [];
  const look = () => {
    // Stages that are done have a small print too: how long they took.
    const small = [...document.querySelectorAll('#stages small')];
    const found = small.map((at) => at.textContent.match(/^([\\d,]+) of/)).find((match) => match);
    if (found) window.shown.push([Date.now() / 1000, Number(found[1].replaceAll(',', ''))]);
  };
  new MutationObserver(look).observe(document.querySelector('#live'), {childList: true, subtree: true});
}"""


def browser_ages(page: Page, driver: Driver) -> list[float]:
    """The worst ages of what the real page showed, each just before it changed."""
    shown: list[tuple[float, int]] = page.evaluate("() => window.shown")
    return [now - driver.told_at(before) for (_, before), (now, _) in itertools.pairwise(shown)]


def first_page(chromium: Browser, url: str) -> float:
    """Seconds until the model field can be typed into, in a browser without a cache."""
    context = chromium.new_context()
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator("#model input").click()
    took = time.perf_counter() - began
    context.close()
    return took


def preview(chromium: Browser, url: str, model: Path) -> float:
    """Seconds from the click to the plan with its proof."""
    page = chromium.new_page()
    page.goto(url)
    page.get_by_label("Model", exact=True).fill(str(model))
    began = time.perf_counter()
    page.get_by_role("button", name="Show plan").click()
    page.locator(".ts-proof").wait_for(timeout=120_000)
    took = time.perf_counter() - began
    page.close()
    return took


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    """Measure, print and write; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--layers", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tricksmith-") as folder, browser() as chromium:
        home = Path(folder)
        deep = deep_model(home / "deep", options.layers)
        with served(home / "data") as url, running_redis(Settings(data=home / "data")) as redis:
            firsts = [first_page(chromium, url) for _ in range(5)]
            previews = [preview(chromium, url, deep) for _ in range(3)]
            with Driver(redis) as driver:
                real = chromium.new_page()
                real.goto(f"{url}/job?id={driver.id}")
                real.locator("#stages small").first.wait_for()
                real.evaluate(_WATCH)
                with ThreadPoolExecutor(1) as pool:  # this thread's loop is the browser's
                    watched = view(url, driver, options.pages, options.seconds)
                    viewers = pool.submit(asyncio.run, watched).result()
                seen = browser_ages(real, driver)
    ages = [age for viewer in viewers for age in viewer.ages]
    answers = [took for viewer in viewers for took in viewer.answers]
    figures = {
        "first_page_s": {"median": statistics.median(firsts), "first": firsts[0], "target": 2.0},
        "preview_s": {"layers": options.layers, "median": statistics.median(previews), "target": 3.0},
        "open_pages": {
            "pages": options.pages,
            "seconds": options.seconds,
            "age_median_s": statistics.median(ages),
            "age_p99_s": percentile(ages, 0.99),
            "age_max_s": max(ages),
            "answer_p99_ms": percentile(answers, 0.99) * 1000,
            "browser_age_max_s": max(seen),
            "target_max_s": 2.0,
        },
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "memory_gb": psutil.virtual_memory().total / 1e9,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(figures, indent=2))
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    good = (
        statistics.median(firsts) < 2.0
        and statistics.median(previews) < 3.0
        and max(max(ages), max(seen)) < 2.0
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
