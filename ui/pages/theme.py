"""How the pages look: Gradio's Soft theme in our colours, on fonts that every system has."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

_TEAL = gr.themes.Color(
    name="teal",
    c50="#f0fafa",
    c100="#d5f1f0",
    c200="#abe2e0",
    c300="#76cbc9",
    c400="#43adab",
    c500="#238f8e",
    c600="#127373",
    c700="#125d5e",
    c800="#134a4c",
    c900="#143e40",
    c950="#062527",
)

THEME = gr.themes.Soft(
    primary_hue=_TEAL,
    secondary_hue=gr.themes.colors.amber,
    neutral_hue=gr.themes.colors.slate,
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"],
    radius_size=gr.themes.sizes.radius_md,
).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
    checkbox_background_color_selected="*primary_600",
    block_title_text_weight="600",
    block_title_background_fill="none",
    block_title_padding="0",
    block_label_background_fill="none",
    block_label_border_width="0px",
    # The defaults of these are too pale to read: below 4.5 : 1 on white.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*primary_800",
    block_title_text_color_dark="white",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_300",
    checkbox_label_background_fill_selected="*primary_600",
    checkbox_label_background_fill_selected_dark="*primary_600",
    checkbox_border_color="*neutral_400",
    input_border_color="*neutral_300",
    input_border_width="1px",
    link_text_color="*primary_700",
    link_text_color_hover="*primary_900",
    link_text_color_visited="*primary_800",
    link_text_color_dark="*primary_300",
    link_text_color_hover_dark="*primary_200",
    link_text_color_visited_dark="*primary_300",
)

CSS = (Path(__file__).parent.parent / "style.css").read_text(encoding="utf-8")
