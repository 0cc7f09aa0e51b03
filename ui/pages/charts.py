"""What a trick saves, as tables for Gradio's own plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

from service.explore import Explored, Figures
from tricks import TRICKS, Plan
from ui.pages.picture import COLOURS
from ui.pages.words import rank

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
BATCHES = (1, 16, 64, 256)
CACHE_BEFORE, CACHE_AFTER = "cache_bytes_per_token_before", "cache_bytes_per_token_after"
_SOURCE = "#64748b"
_READS = re.compile(r"(?P<what>.*reads)_(?P<when>before|after)_batch_(?P<batch>\d+)")


def weights(seen: Explored) -> pd.DataFrame:
    """Columns model, bytes: the source, and the result of each trick that fits, on its own."""
    rows: list[tuple[str, float]] = [("source", seen.figures.weight_bytes)]
    for look in sorted(seen.looks, key=lambda look: rank(look.trick.name)):
        if look.plan is not None and look.fits:
            saved = look.plan.savings.get("weight_bytes_saved", 0)
            rows.append((look.trick.name, (seen.figures.weight_bytes - saved)))
    return pd.DataFrame(rows, columns=["model", "bytes"])


def cache(figures: Figures, plans: Sequence[tuple[str, Plan]], batch: int) -> pd.DataFrame:
    """Columns context, bytes, model: the cache of the source and of each trick that makes it smaller."""
    per_token = figures.cache_per_token
    if per_token is None:
        return pd.DataFrame(columns=["context", "bytes", "model"])
    lines: list[tuple[str, float]] = [("source", per_token)]
    for name, plan in plans:
        if saved := _cache_saved(plan):
            lines.append((name, per_token - saved))
    rows = [(context, per * context * batch, name) for name, per in lines for context in CONTEXTS]
    return pd.DataFrame(rows, columns=["context", "bytes", "model"])


def _cache_saved(plan: Plan) -> int | float:
    return plan.savings.get(CACHE_BEFORE, 0) - plan.savings.get(CACHE_AFTER, 0)


def reads(plans: Sequence[tuple[str, Plan]]) -> pd.DataFrame:
    """Columns batch, share: what the first layer reads, in % of what the source's reads, where a plan counts
    it."""
    counted: dict[int, dict[str, int | float]] = {}
    for _, plan in plans:
        for key, value in plan.savings.items():
            if found := _READS.fullmatch(key):
                counted.setdefault(int(found["batch"]), {})[found["when"]] = value
    rows = [
        (f"batch {batch}", 100 * told["after"] / told["before"])
        for batch, told in sorted(counted.items())
        if told.get("before") and "after" in told
    ]
    return pd.DataFrame(rows, columns=["batch", "share"])


def bars(frame: pd.DataFrame) -> dict[str, Any]:
    """`drawn` for bars: in the order of the rows, and from zero on, so that lengths tell the truth."""
    update = drawn(frame)
    if len(frame):
        x, y = frame.columns[:2]
        update |= {"sort": list(frame[x]), "y_lim": [0, float(update["value"][y].max()) * 1.05]}
    return update


def lines(frame: pd.DataFrame) -> dict[str, Any]:
    """`drawn` for lines, in their tricks' colours."""
    update = drawn(frame)
    if len(frame):
        colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(TRICKS)}
        update["color_map"] = {name: colours.get(name, _SOURCE) for name in dict.fromkeys(frame["model"])}
    return update


def drawn(frame: pd.DataFrame) -> dict[str, Any]:
    """The update that shows a plot, bytes in a unit that fits; or hides it where there is nothing to draw."""
    if not len(frame):
        return gr.update(visible=False)
    if "bytes" not in frame:
        return gr.update(value=frame, visible=True)
    step, unit = next((each for each in _UNITS if frame["bytes"].max() >= each[0]), _UNITS[-1])
    return gr.update(value=frame.assign(bytes=frame["bytes"] / step), visible=True, y_title=unit)
