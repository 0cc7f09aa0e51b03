"""The charts of the first page, as Gradio draws them."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
import pandas as pd

from ui.pages import charts


@dataclass(frozen=True)
class Plots:
    """The charts of a model's savings, hidden until there is something to draw."""

    batch: gr.Radio
    weights: gr.BarPlot
    cache: gr.LinePlot
    reads: gr.BarPlot


def build() -> Plots:
    """Lay the charts out in the current Blocks."""
    weights = gr.BarPlot(
        pd.DataFrame(columns=["model", "bytes"]),
        x="model",
        y="bytes",
        title="Weights, each trick alone",
        show_label=False,
        x_title=" ",
        y_title="bytes",
        height=260,
        x_label_angle=-30,
        visible=False,
        elem_id="chart-weights",
    )
    batch = gr.Radio(
        [str(n) for n in charts.BATCHES],
        value="1",
        label="Batch: sequences at a time",
        elem_id="batch",
        visible=False,
    )
    cache = gr.LinePlot(
        pd.DataFrame(columns=["context", "bytes", "model"]),
        x="context",
        y="bytes",
        color="model",
        title="Cache by context length",
        show_label=False,
        x_title="tokens of context",
        color_title=" ",
        y_title="bytes",
        height=280,
        visible=False,
        elem_id="chart-cache",
    )
    reads = gr.BarPlot(
        pd.DataFrame(columns=["batch", "share"]),
        x="batch",
        y="share",
        title="Reads with precompute",
        show_label=False,
        x_title=" ",
        y_title="% of source, 1st layer",
        height=260,
        visible=False,
        elem_id="chart-reads",
    )
    return Plots(batch, weights, cache, reads)
