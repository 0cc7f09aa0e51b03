"""Options of tricks as form fields, made from what each option says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from tricks import TRICKS, BadInput
from tricks.options import Choice, Option
from ui.pages.words import about_choice, about_option

_LONGEST = 60  # characters of an option's value


@dataclass(frozen=True)
class Field:
    """One option of one trick, and its form field."""

    trick: str
    option: str
    component: gr.components.Component

    @property
    def spec(self) -> Option:
        """What it takes."""
        return TRICKS[self.trick][self.option]


@dataclass(frozen=True)
class Options:
    """All fields, each trick's in a group that shows while the trick is chosen."""

    groups: dict[str, gr.Group]
    fields: tuple[Field, ...]

    @property
    def components(self) -> list[gr.components.Component]:
        """The fields, in the order in which their values come."""
        return [field.component for field in self.fields]

    def recipe(self, chosen: Sequence[str], values: Sequence[Any]) -> list[str]:
        """The chosen tricks with the options that differ from their defaults, as `parse_trick` reads them.

        Raises:
            BadInput: a value that is longer than any option's; the field's own limit binds browsers alone.
        """
        given: dict[str, list[str]] = {}
        for field, value in zip(self.fields, values, strict=True):
            text = str(value if value is not None else "").strip()
            if len(text) > _LONGEST:
                what = f"{field.trick}: {field.option}"
                raise BadInput(f"{what} has {len(text):,} characters; it takes {_LONGEST} at most")
            if text and text != field.spec.default:
                given.setdefault(field.trick, []).append(f"{field.option}={text}")
        order = [name for name in TRICKS if name in chosen] + [name for name in chosen if name not in TRICKS]
        return [f"{name}:{','.join(given[name])}" if name in given else name for name in order]

    def values(self, recipe: Sequence[str]) -> tuple[list[str], list[str]]:
        """(chosen tricks, every field's value) of a recipe, the inverse of `recipe`; what it does not know is
        left out."""
        chosen, given = [], {}
        for text in recipe:
            name, _, rest = text.partition(":")
            if name in TRICKS:
                chosen.append(name)
                given.update({(name, k): v for k, _, v in (part.partition("=") for part in rest.split(","))})
        values = []
        for field in self.fields:
            value = given.get((field.trick, field.option), field.spec.default)
            values.append(field.spec.default if field.spec.read(value) is None else value)
        return chosen, values

    def shown(self, chosen: Sequence[str]) -> list[Any]:
        """An update for each group: visible while its trick is chosen."""
        return [gr.update(visible=name in chosen) for name in self.groups]


def build(chosen: Sequence[str]) -> Options:
    """Lay out the fields in the current Blocks."""
    groups: dict[str, gr.Group] = {}
    fields: list[Field] = []
    for trick, options in TRICKS.items():
        if not options:
            continue
        with gr.Group(visible=trick in chosen, elem_classes="ts-options") as group:
            fields += [
                Field(trick, name, _component(trick, name, option)) for name, option in options.items()
            ]
        groups[trick] = group
    return Options(groups, tuple(fields))


def _component(trick: str, name: str, option: Option) -> gr.components.Component:
    words, identity = about_option(trick, name), f"option-{trick}-{name}"
    label = f"{trick}: {words.label}"
    if isinstance(option, Choice):
        choices: list[str | int | float | tuple[str, str | int | float]] = [
            (about_choice(trick, name, each), each) for each in option.words
        ]
        return gr.Radio(
            choices=choices, value=option.default, label=label, info=words.about or None, elem_id=identity
        )
    info = f"{'; '.join(each for each in (words.about, option.describe()) if each)} ({name})"
    return gr.Textbox(value=option.default, label=label, info=info, max_length=_LONGEST, elem_id=identity)
