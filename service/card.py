"""The card: the `README.md` of a converted model, from plan, evidence and manifest.

Whatever comes from the source (its name, its card, its layers' names) is untrusted text: metadata values are
checked against the shapes the Hub knows, and text is escaped before it enters Markdown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from service.gains import gains
from service.hub import endpoint
from service.manifest import digest
from service.publish import UNVERIFIED
from service.source import Source
from tricks import Place, Plan

if TYPE_CHECKING:
    from evals import Evidence

_TEMPLATE = Path(__file__).with_name("card_template.md")
_MAX_ROWS = 60  # per table; more kinds of places than that nobody reads

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LICENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,+()_-]{0,90}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?|code|multilingual")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,60}")
_WEB = re.compile(r"https?://[A-Za-z0-9._~:/?#@!$&'*+,;=%-]{1,300}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,90}")


@dataclass(frozen=True)
class Row:
    """Places of one kind: the same trick, name and outcome in several layers."""

    trick: str
    where: str
    layers: str
    detail: str


def render_card(
    source: Source,
    plan: Plan,
    evidence: Evidence | None,
    manifest: dict[str, Any],
    destination: str | None = None,
) -> str:
    """The card's whole text. The first line after the metadata states the verdict, or `UNVERIFIED`.

    `destination` is the Hub id that the loading example names; without one it names the folder of the card.
    """
    recipe = [str(trick) for trick in plan.tricks]
    carried = _carried(plan)
    folded, more_folded = _rows(place for place in plan.places if place.fits)
    left, more_left = _rows(place for place in plan.places if not place.fits)
    commands = " ".join(f"--trick {shlex.quote(trick)}" for trick in recipe)
    name = _public_reference(source)
    body = (
        _environment()
        .from_string(_TEMPLATE.read_text("utf-8"))
        .render(
            verdict_line=_verdict_line(evidence),
            title=f"{escape(source.model.rsplit('/', 1)[-1])} with {escape(', '.join(recipe))}",
            summary=_summary(source, plan, recipe),
            evidence=evidence,
            folded=folded,
            left=left,
            hidden=more_folded + more_left,
            agreement=_agreement(plan),
            gains=gains(trick for trick in plan.tricks if trick.name in carried),
            idle=[str(trick) for trick in plan.tricks if trick.name not in carried],
            savings=[(key.replace("_", " "), _number(value)) for key, value in plan.savings.items()],
            here=repr(destination or "."),
            loader=_loader(plan),
            own_code=bool(plan.parts),
            stock_loads=plan.stock_loads,
            tried=manifest["versions"].get("transformers"),
            convert_command=f"tricksmith convert {name} OUT {commands}",
            verify_command=f"tricksmith verify {name} OUT",
            reproduce_command=_reproduce(source, destination),
            source_link=_link(source),
            commit=source.commit or "none (a local folder)",
            licence=escape(source.licence) if source.licence else "the source states none",
            recipe=" ".join(recipe),
            made_with=_made_with(manifest),
            manifest_digest=digest(manifest),
        )
    )
    card = ModelCard(f"---\n{_metadata(source, plan).to_yaml()}\n---\n\n{body.strip()}\n")
    card.data.to_yaml()  # reads and writes again what the Hub will read, or raises here
    return str(card)


def escape(text: str) -> str:
    """`text` as one line of plain Markdown: no markup, link, HTML or table column of its own."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", line)
    # A bare address would become a link: break it after its scheme.
    return re.sub(
        r"(?i)(https?|ftp)://|www\.", lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), line
    )


def code(text: str) -> str:
    """`text` as a code span that also holds inside a table."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return "`" + line.replace("`", "'").replace("|", "\\|") + "`" if line else ""


def _as_entities(text: str) -> str:
    return text.replace(":", "&#58;").replace(".", "&#46;")


def _environment() -> Environment:
    # Markdown, not HTML: `escape` and `code` do what autoescape would not.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"md": escape, "code": code}
    return environment


def _verdict_line(evidence: Evidence | None) -> str:
    if evidence is None:
        return f"**{UNVERIFIED}**: not yet compared with its source; run `tricksmith verify` before using it."
    lines = {
        "equivalent": "the same model as its source: their outputs differ by no more than the source's own"
        " rounding.",
        "within budget": "it differs from its source by no more than the budget that its recipe states.",
        "different": "it is **not** the same model as its source; do not use it in its place.",
    }
    return f"**Verdict: {evidence.verdict.value}**: {lines[evidence.verdict.value]}"


def _summary(source: Source, plan: Plan, recipe: Sequence[str]) -> str:
    kind = "exact but for rounding" if plan.lossless else "approximate"
    return (
        f"This is {_link(source)} ({escape(plan.architecture)}), converted by Tricksmith with"
        f" {', '.join(code(trick) for trick in recipe)}: {kind}. Its tokenizer, its chat template and every"
        " tensor that the conversion does not change are the source's, byte for byte."
    )


def _carried(plan: Plan) -> set[str]:
    """The tricks that found a place; a recipe may name more."""
    return {place.trick for place in plan.places if place.fits}


def _agreement(plan: Plan) -> str | None:
    """How closely the plan's proof agreed, in words; None where none was run."""
    if plan.proof is None:
        return None
    agree = "are equal" if plan.proof == 0 else f"agree to {plan.proof:.1e} (relative)"
    return agree if plan.lossless else f"{agree} on texts that fit into its window"


def _loader(plan: Plan) -> str:
    """The class of transformers whose `from_pretrained` loads the model."""
    if plan.architecture.endswith("ForCausalLM"):
        return "AutoModelForCausalLM"
    from tricks.families import auto_class  # late: it brings transformers, which few cards need

    try:
        return auto_class(plan.architecture)
    except StopIteration:  # no class of transformers
        return "AutoModelForCausalLM"


def _metadata(source: Source, plan: Plan) -> ModelCardData:
    """The front matter: what stays true of the source, and nothing of its scores.

    `base_model_relation` is left out on purpose: the Hub knows `adapter`, `merge`, `quantized` and
    `finetune`, and an equivalent model is none of them. The Hub then makes its own guess; we state nothing.
    """
    card = source.card
    licence = _matching(card.get("license"), _LICENCE)
    other = licence == "other"
    carried = _carried(plan)
    ours = ["tricksmith", *(trick.name for trick in plan.tricks if trick.name in carried)]
    task = "text-generation" if _loader(plan) == "AutoModelForCausalLM" else None
    return ModelCardData(
        base_model=source.model if source.folder is None else None,
        license=licence,
        license_name=_matching(card.get("license_name"), _LICENCE_NAME) if other else None,
        license_link=_licence_link(source) if other else None,
        language=_matching_all(card.get("language"), _LANGUAGE) or None,
        library_name=_matching(card.get("library_name"), _LICENCE) or "transformers",
        pipeline_tag=_matching(card.get("pipeline_tag"), _LICENCE) or task,
        tags=list(dict.fromkeys([*ours, *_matching_all(card.get("tags"), _TAG)])),
    )


def _matching(value: object, pattern: re.Pattern[str]) -> str | None:
    """A single text of the right shape, or nothing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _matching_all(value: object, pattern: re.Pattern[str]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and pattern.fullmatch(item)][:40]


def _licence_link(source: Source) -> str | None:
    """The licence's address; a file of the source's repo is pointed at there, at the commit that was read."""
    link = _matching(source.card.get("license_link"), _WEB)
    file = _matching(source.card.get("license_link"), _FILE)
    if link is None and file is not None and source.folder is None:
        return f"{endpoint()}/{source.model}/blob/{source.commit}/{file}"
    return link or file


def _reproduce(source: Source, destination: str | None) -> str | None:
    """The one command that makes the published conversion again; None where it is not published."""
    if destination is None:
        return None
    given = f" --source {_public_reference(source)}" if source.folder is not None else ""
    return f"tricksmith reproduce {shlex.quote(destination)}{given}"


def _public_reference(source: Source) -> str:
    """The source as a command names it, without saying where a folder lay on our disk."""
    return shlex.quote(f"./{source.model}" if source.folder is not None else source.reference)


def _link(source: Source) -> str:
    if source.folder is not None:
        return f"{code(source.model)}, a local folder"
    return f"[{escape(source.model)}]({endpoint()}/{source.model}/tree/{source.commit})"


def _rows(places: Iterable[Place]) -> tuple[list[Row], int]:
    """Places grouped over the layers, at most `_MAX_ROWS` rows, and how many rows that leaves out."""
    groups: dict[tuple[str, str, str], list[int | None]] = {}
    for place in places:
        number = re.search(r"(?<=\.)\d+(?=\.|$)|(?<=\blayer )\d+", place.where)
        where, detail = place.where, place.detail
        if number is not None:  # the layer's number; any other number in the name tells places apart
            where = where[: number.start()] + "N" + where[number.end() :]
            detail = re.sub(rf"(?<=\.){number[0]}(?=\.)|(?<=\blayer ){number[0]}\b", "N", detail)
        groups.setdefault((place.trick, where, detail), []).append(int(number[0]) if number else None)
    rows = [
        Row(trick, where, ranges([n for n in numbers if n is not None]) or "-", detail)
        for (trick, where, detail), numbers in groups.items()
    ]
    return rows[:_MAX_ROWS], max(0, len(rows) - _MAX_ROWS)


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _made_with(manifest: dict[str, Any]) -> str:
    tools = {manifest["tool"]["name"]: manifest["tool"]["version"], **manifest["versions"]}
    return ", ".join(f"{name} {number}" for name, number in tools.items() if number)
