"""Which files of Gradio's frontend a page needs, told to the browser at once.

Left to itself a browser finds them one behind the other: the entry names the shell, the shell the blocks, the
blocks each component. What a build leaves in its chunks says the same beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio

FRONTEND = Path(gradio.__file__).parent / "templates" / "frontend"

_ENTRY = re.compile(r'src="\./assets/([\w.-]+\.js)"')
_LISTED = re.compile(r"m\.f=\[(.*?)\]")
_NAMED = re.compile(r'"\./([\w.-]+)"')
_IMPORT = r"import\(`\./(?P<name>[\w.-]+)`\)[^_]{0,60}?,__vite__mapDeps\(\[(?P<deps>[\d,]+)\]\)"
_COMPONENT = re.compile(r"(?P<type>\w+):\{(?:(?!\}[,;}]).)*?\bcomponent:\(\)=>\w+\(\(\)=>" + _IMPORT)
_SHELL = re.compile(_IMPORT)


class Frontend:
    """The chunks of an installed frontend; of one that is built otherwise nothing is known."""

    def __init__(self, folder: Path = FRONTEND) -> None:
        self._folder = folder

    def needed(self, types: Iterable[str]) -> list[str]:
        """The names in `assets` that a page of these component types loads beside those in its own HTML, in
        the order of their need."""
        named = [*self._shell, *(name for each in types for name in self._components.get(each, ()))]
        return [name for name in dict.fromkeys(named) if name not in self._html]

    @cached_property
    def _html(self) -> str:
        return (self._folder / "index.html").read_text(encoding="utf-8")

    @cached_property
    def _shell(self) -> list[str]:
        """What every page loads before its components."""
        entry = _ENTRY.search(self._html)
        if entry is None:
            return []
        first = list(_imports(self._text(entry[1])))
        then = [
            deps for name, _ in first for to, deps in _imports(self._text(name)) if to.startswith("Blocks-")
        ]
        return [name for deps in (*(deps for _, deps in first), *then) for name in deps]

    @cached_property
    def _components(self) -> dict[str, list[str]]:
        """Each component type's files."""
        core = next((name for name in self._shell if re.fullmatch(r"core-[\w-]+\.js", name)), None)
        if core is None:
            return {}
        text = self._text(core)
        listed = _files(text)
        return {found["type"]: _picked(listed, found["deps"]) for found in _COMPONENT.finditer(text)}

    def _text(self, name: str) -> str:
        return (self._folder / "assets" / name).read_text(encoding="utf-8")


def _imports(text: str) -> Iterator[tuple[str, list[str]]]:
    listed = _files(text)
    for found in _SHELL.finditer(text):
        yield found["name"], _picked(listed, found["deps"])


def _files(text: str) -> list[str]:
    found = _LISTED.search(text)
    return _NAMED.findall(found[1]) if found else []


def _picked(listed: list[str], numbers: str) -> list[str]:
    return [listed[int(number)] for number in numbers.split(",")]


def shown_types(config: Mapping[str, Any], page: str) -> list[str]:
    """The component types that a page mounts when it is opened: what is hidden is loaded when it shows."""
    components = {each["id"]: each for each in config["components"]}

    def types(node: Mapping[str, Any]) -> Iterator[str]:
        component = components.get(node["id"])
        if component is not None:
            if component["props"].get("visible") is False:
                return
            yield str(component["type"])
        for child in node.get("children") or ():
            yield from types(child)

    # A page is a column itself.
    return list(dict.fromkeys(["column", *types(config["page"][page]["layout"])]))
