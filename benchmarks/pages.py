"""`make bench-pages`: how soon the pages answer, and how fresh 200 open job pages stay.

1. The first page, from the address typed to its model field ready, in Chromium.
2. The preview of a model of 400 layers (its shards are holes: only headers are read), from the click to the
   plan with its proof.
3. 200 open pages of one running job, whose driver tells progress ten times a second as a worker does and
   enters another stage every few seconds; half way somebody cancels it, and all pages get other buttons. Each
   page does what the real one's script does, on connections of its own: it loads the page, holds Gradio's
   heartbeat stream open, asks the live address as often as it is told to, and fetches plan, picture and card
   when they changed. One page more is in Chromium. The age of what a page shows is the time since the
   progress that it shows was told; it is taken just before each new answer, once all pages are open. Twice:
   with the real worker idle, and with it converting and verifying models/tiny-llama all the time.

Writes benchmarks/results/pages.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from playwright.sync_api import Browser

from benchmarks.deep import deep_model
from benchmarks.open_pages import WATCH, Busy, Driver, browser_ages, view
from service.redis_server import running_redis
from service.settings import Settings
from ui.screenshots import browser, served

RESULTS = Path(__file__).parent / "results" / "pages.json"


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


def open_pages(chromium: Browser, url: str, redis: str, options: argparse.Namespace) -> dict[str, float]:
    """How old (seconds) open pages get, and how soon they are answered."""
    with Driver(redis) as driver:
        real = chromium.new_page()
        real.goto(f"{url}/job?id={driver.id}")
        real.locator("#stages small").first.wait_for()
        real.evaluate(WATCH)
        with ThreadPoolExecutor(1) as pool:  # this thread's loop is the browser's
            watched = view(url, driver, options.pages, options.seconds)
            viewers = pool.submit(asyncio.run, watched).result()
        seen = browser_ages(real, driver)
        real.close()
    ages = [age for viewer in viewers for age in viewer.ages]
    answers = [took for viewer in viewers for took in viewer.answers]
    return {
        "age_median_s": statistics.median(ages),
        "age_p99_s": percentile(ages, 0.99),
        "age_max_s": max(ages),
        "browser_age_max_s": max(seen),
        "answer_p99_ms": percentile(answers, 0.99) * 1000,
    }


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
        # Each preview is of a model that was never seen before.
        deep = [deep_model(home / f"deep-{number}", options.layers) for number in range(3)]
        with served(home / "data") as url, running_redis(Settings(data=home / "data")) as redis:
            firsts = [first_page(chromium, url) for _ in range(5)]
            previews = [preview(chromium, url, model) for model in deep]
            settings = Settings(data=home / "data", redis_url=redis)
            idle = open_pages(chromium, url, redis, options)
            with Busy(settings, home / "out") as worker:
                busy = open_pages(chromium, url, redis, options)
    figures = {
        "first_page_s": {"median": statistics.median(firsts), "first": firsts[0], "target": 2.0},
        "preview_s": {"layers": options.layers, "median": statistics.median(previews), "target": 3.0},
        "open_pages": {
            "pages": options.pages,
            "seconds": options.seconds,
            "target_max_s": 2.0,
            "worker_idle": idle,
            "worker_busy": {**busy, "jobs_done": worker.done},
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
        and all(told[age] < 2.0 for told in (idle, busy) for age in ("age_max_s", "browser_age_max_s"))
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
