"""A card as it is published, as HTML that runs nothing and fetches nothing: cards quote their sources."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from ui.pages.escape import esc

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def as_html(card: str) -> str:
    """The card without its metadata: HTML in it as text, pictures as their words, links to the web alone."""
    return str(_MARKDOWN.render(_FRONT_MATTER.sub("", card)))


def _image(_: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    return f"<em>{esc(tokens[at].content)}</em>"


def _link(self: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[at]
    target = str(token.attrGet("href") or "")
    web = target.startswith(("https://", "http://"))
    # What is relative lies in the published repo, not here.
    token.attrs = {"href": target, "rel": "noopener noreferrer nofollow"} if web else {}
    return self.renderToken(tokens, at, options, env)


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_MARKDOWN.add_render_rule("image", _image)
_MARKDOWN.add_render_rule("link_open", _link)
