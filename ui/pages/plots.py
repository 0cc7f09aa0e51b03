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
        label="Weights",
        x_title=" ",
        y_title="bytes",
        height=240,
        visible=False,
        elem_id="chart-weights",
    )
    batch = gr.Radio(
        [str(n) for n in charts.BATCHES], value="1", label="Batch", elem_id="batch", visible=False
    )
    cache = gr.LinePlot(
        pd.DataFrame(columns=["context", "bytes", "model"]),
        x="context",
        y="bytes",
        color="model",
        label="Cache against context length",
        x_title="tokens of context",
        y_title="bytes",
        height=280,
        visible=False,
        elem_id="chart-cache",
    )
    reads = gr.BarPlot(
        pd.DataFrame(columns=["step", "reads"]),
        x="step",
        y="reads",
        label="Numbers read per step, before and after",
        x_title=" ",
        height=260,
        x_label_angle=-30,
        visible=False,
        elem_id="chart-reads",
    )
    return Plots(batch, weights, cache, reads)
