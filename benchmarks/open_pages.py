"""Open job pages, many of them, of one running job whose progress is known at any moment."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import threading
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from playwright.sync_api import Page

from service.api import Service
from service.jobs import JobStore, Stage
from service.settings import Settings
from ui.demo import MODEL

RAMP = 20.0  # seconds in which the pages are opened
TOLD_EVERY = 0.1  # seconds
STAGE_EVERY = 7.0  # seconds
_SHOWN = re.compile(r"<small>([\d,]+) of")
_STAGES = (Stage.FETCH, Stage.CONVERT, Stage.VERIFY)


class Busy:
    """Keeps the real worker at work: models/tiny-llama is converted and verified, one job after the other."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self._settings, self._out = settings, out
        self._begun, self._over = threading.Event(), threading.Event()
        self.done: list[str] = []
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Busy:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        with Service(self._settings) as service:
            while not self._over.is_set():
                job = service.submit(str(MODEL), ["flashnorm"], str(self._out / str(len(self.done))))
                self._begun.set()
                while not (job := service.job(job.id)).state.final and not self._over.wait(0.2):
                    pass
                if job.state.final:
                    self.done.append(str(job.state))
            if not job.state.final:
                service.cancel(job.id)


class Driver:
    """Plays the worker of one job: `done` counts the ticks of `TOLD_EVERY` since the start."""

    def __init__(self, url: str) -> None:
        self._store = JobStore(url)
        source = {"model": "someone/model", "commit": "0" * 40, "size_bytes": 1}
        job, _ = self._store.create(
            model="someone/model",
            tricks=["flashnorm"],
            to="someone/result",
            source=source,
            key=f"bench {time.time()}",
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
    """One open job page without a browser, on connections of its own."""

    def __init__(self, client: ClientSession, driver: Driver) -> None:
        self._client, self._driver = client, driver
        self._session = uuid.uuid4().hex[:12]
        self._later: asyncio.Task[None] | None = None
        self.ages: list[float] = []
        self.answers: list[float] = []

    async def open(self, settled: float, until: float) -> None:
        """Load the page, then stay; ages count from `settled` on."""
        await self._get("/job")
        beat = asyncio.create_task(self._heartbeat())
        try:
            await self._papers()
            await self._live(settled, until)
        finally:
            ending = [task for task in (beat, self._later) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _heartbeat(self) -> None:
        forever = ClientTimeout(total=None)
        async with self._client.get(f"/gradio_api/heartbeat/{self._session}", timeout=forever) as stream:
            async for _ in stream.content.iter_any():
                pass

    async def _get(self, path: str, **more: str) -> bytes:
        async with self._client.get(path, params={"id": self._driver.id, **more}) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def _papers(self) -> None:
        await self._get("/live/papers")

    async def _change(self) -> None:
        await asyncio.sleep(2 * random.random())
        await self._papers()

    async def _live(self, settled: float, until: float) -> None:
        seen, papers, shown, every = "", None, None, 1.0
        while time.time() < until:
            began = time.time()
            answer = await self._get("/live/job", seen=seen)
            now = time.time()
            if now > settled:
                self.answers.append(now - began)
            if answer:
                told = json.loads(answer)
                seen, every = told["version"], told["every"] / 1000
                found = _SHOWN.search(told["stages"])
                if found:
                    if shown is not None and now > settled:
                        self.ages.append(now - self._driver.told_at(shown))
                    shown = int(found[1].replace(",", ""))
                if papers is not None and told["papers"] != papers:
                    self._later = asyncio.create_task(self._change())
                papers = told["papers"]
            await asyncio.sleep(every)


def _client(url: str) -> ClientSession:
    # A pool that all of them share would keep this process so busy that it measures itself.
    return ClientSession(url, connector=TCPConnector(), timeout=ClientTimeout(total=30.0))


async def view(url: str, driver: Driver, pages: int, seconds: float) -> list[Viewer]:
    """`pages` open pages, all of them open for `seconds`."""
    async with AsyncExitStack() as stack:
        viewers = [Viewer(await stack.enter_async_context(_client(url)), driver) for _ in range(pages)]
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


WATCH = """() => {
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
