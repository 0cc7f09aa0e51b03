"""What a converted model is called, following its source's name as other converted models do."""

from __future__ import annotations

from collections.abc import Sequence

from service.hub import is_hub_id
from tricks import BadInput, parse_trick

_SUFFIX = {
    "flashnorm": "FlashNorm",
    "slim": "Slim",
    "precompute": "Precompute",
    "skipless": "Skipless",
    "matshrink": "MatShrink",
    "approximate": "Approx",
}
_LONGEST = 96  # characters of a repo's name on the Hub


def converted_name(model: str, tricks: Sequence[str]) -> str:
    """`Model-FlashNorm` for `org/Model` (or `org/Model@revision`) and the trick `flashnorm`."""
    base = model.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    names = [parse_trick(text).name for text in tricks]
    suffix = "-" + "-".join(_SUFFIX.get(name, name) for name in names)
    return base[: _LONGEST - len(suffix)].rstrip("-.") + suffix


def destination(to: str, model: str, tricks: Sequence[str]) -> str:
    """Where the conversion of `model` goes, by a rule for many.

    `to` is a namespace, a folder that will hold a folder per model, or a pattern with `{name}` (the source's
    own name) and `{owner}` in it. Anything else names one destination and is given back as it is.

    Raises:
        BadInput: the pattern does not make a destination.
    """
    to = to.strip()
    owner, _, name = model.partition("@")[0].rpartition("/")
    if "{" in to or "}" in to:
        made = to.replace("{name}", name).replace("{owner}", owner)
        if "{" in made or "}" in made:
            raise BadInput(
                f"{to!r} is no pattern; {{name}} and {{owner}} may stand in it, as in me/{{name}}-X"
            )
        return made
    if to.startswith(("/", ".", "~")):
        return f"{to.rstrip('/')}/{owner + '--' if owner else ''}{converted_name(model, tricks)}"
    if "/" not in to and is_hub_id(to):
        return f"{to}/{converted_name(model, tricks)}"
    return to
