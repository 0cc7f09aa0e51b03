"""The card: true, readable at any depth, valid for the Hub, and deaf to what a source would have it say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from evals import Evidence, Verdict
from service.card import code, escape, ranges, render_card
from service.papers import write_papers
from service.publish import publish
from service.source import Source, SourceFile, resolve
from tests.hub_models import EQUIVALENT, convert_by_copy, write_model
from tests.hub_server import HubServer
from tricks import Place, Plan, parse_trick

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MANIFEST: dict[str, Any] = {
    "schema": 1,
    "tool": {"name": "tricksmith", "version": "0.1.0"},
    "versions": {"torch": "2.13.0", "python": "3.11.7", "platform": "Linux x86_64"},
    "created": "2026-01-01T00:00:00+00:00",
    "files": {},
}
SOURCE = Source(
    model="forge/Tiny-1B",
    commit=COMMIT,
    licence="apache-2.0",
    files=(SourceFile("model.safetensors", 10),),
    card={
        "license": "apache-2.0",
        "language": ["en", "de"],
        "tags": ["tiny"],
        "pipeline_tag": "text-generation",
    },
)


def plan_of(layers: int, **changes: Any) -> Plan:
    places = [
        Place("flashnorm", f"model.layers.{n}.{norm}", True, f"folded into model.layers.{n}.{into}")
        for n in range(layers)
        for norm, into in (
            ("input_layernorm", "self_attn.q_proj"),
            ("post_attention_layernorm", "mlp.up_proj"),
        )
    ]
    places.append(Place("flashnorm", "model.norm", False, "the head is tied to the embedding"))
    return dataclasses.replace(
        Plan("forge/Tiny-1B", "LlamaForCausalLM", (parse_trick("flashnorm"),), tuple(places), proof=2.5e-15),
        **changes,
    )


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1].lstrip()


def test_the_first_line_states_the_verdict() -> None:
    lines = {
        None: "**UNVERIFIED**",
        Verdict.EQUIVALENT: "**Verdict: equivalent**",
        Verdict.WITHIN_BUDGET: "**Verdict: within budget**",
        Verdict.DIFFERENT: "**Verdict: different**",
    }
    for verdict, start in lines.items():
        evidence = None if verdict is None else Evidence(verdict=verdict)
        assert body(render_card(SOURCE, plan_of(2), evidence, MANIFEST)).startswith(start)


def test_metadata_is_the_sources_without_its_scores(tmp_path: Path) -> None:
    card = ModelCard(render_card(SOURCE, plan_of(2), EQUIVALENT, MANIFEST))
    assert card.data.to_dict() == {
        "base_model": "forge/Tiny-1B",
        "language": ["en", "de"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["tricksmith", "flashnorm", "tiny"],
    }
    local = resolve(str(write_model(tmp_path / "tiny")))  # its card claims 99.9 % on MMLU
    text = render_card(local, plan_of(2), EQUIVALENT, MANIFEST)
    assert "99.9" not in text
    assert "model-index" not in text
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.base_model) == ("other", "smith-licence", None)


def test_the_hubs_own_rules_accept_it(hub: HubServer) -> None:
    HfApi(endpoint=hub.endpoint)._validate_yaml(render_card(SOURCE, plan_of(2), EQUIVALENT, MANIFEST))
    assert hub.requests[-1].status == 200


def test_a_deep_model_stays_readable() -> None:
    card = render_card(SOURCE, plan_of(400), EQUIVALENT, MANIFEST)
    assert len(card) < 6_000
    assert (
        "| flashnorm | `model.layers.N.input_layernorm` | 0-399 | folded into model.layers.N.self\\_attn"
        in card
    )
    assert "| flashnorm | `model.norm` | - | the head is tied to the embedding |" in card


def test_layers_that_differ_are_told_apart() -> None:
    places = tuple(
        Place("flashnorm", f"model.layers.{n}.norm", n != 3, "router reads it" if n == 3 else "folded")
        for n in range(8)
    )
    card = render_card(SOURCE, plan_of(0, places=places), EQUIVALENT, MANIFEST)
    assert "| 0-2, 4-7 | folded |" in card
    assert "| 3 | router reads it |" in card


def test_it_says_how_to_make_it_again_and_that_it_is_not_faster() -> None:
    card = render_card(SOURCE, plan_of(2), EQUIVALENT, MANIFEST, destination="smith/Tiny-1B-FlashNorm")
    assert f"tricksmith convert forge/Tiny-1B@{COMMIT} OUT --trick flashnorm\n" in card
    assert f"tricksmith verify forge/Tiny-1B@{COMMIT} OUT\n" in card
    assert "from_pretrained('smith/Tiny-1B-FlashNorm'" in card
    assert "**not faster** by itself" in card
    assert "tricksmith 0.1.0, torch 2.13.0" in card
    assert "2.5e-15" in card


@pytest.mark.parametrize("notes", [(), ("one",), ("one", "two")])
@pytest.mark.parametrize("proof", [None, 1e-15])
@pytest.mark.parametrize("layers", [0, 3])
def test_tables_are_tables_in_markdown(notes: tuple[str, ...], proof: float | None, layers: int) -> None:
    savings = {"weight_bytes": 123456, "cache_bytes_per_token": 0.5}
    series = {"layers": [[1e-3, 1e-3]]} if layers else {}
    evidence = Evidence(verdict=Verdict.EQUIVALENT, notes=notes, series=series)
    plan = plan_of(layers, savings=savings, proof=proof)
    card = render_card(SOURCE, plan, evidence, MANIFEST)
    assert "| weight bytes | 123,456 |" in card
    for block in re.split(r"\n\n+", body(card)):
        lines = block.splitlines()
        if any(line.startswith("|") for line in lines):
            assert all(line.startswith("|") for line in lines), block
            assert re.fullmatch(r"\|(---\|)+", lines[1]), block
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
            assert len(cells) == 1, block
    assert "\n\n\n" not in card


def words(trick: str, **changes: Any) -> str:
    """The card of a plan of one trick that has a place, in one line."""
    recipe = parse_trick(trick)
    places = (Place(recipe.name, "model.layers.0.self_attn", True, "done"),)
    plan = plan_of(0, tricks=(recipe,), places=places, **changes)
    return " ".join(render_card(SOURCE, plan, EQUIVALENT, MANIFEST).split())


@pytest.mark.parametrize(
    ("trick", "said", "unsaid"),
    [
        ("flashnorm", "**not faster** by itself", "shipped"),
        ("flashnorm:form=strict", "gains are gone from the files", "not faster"),
        ("flashnorm:form=center", "take no mean off", "not faster"),
        ("flashnorm:form=cancel", "one number per token", "not faster"),
        ("flashnorm:form=defer", "in one kernel for up to 16 tokens", "not faster"),
        ("slim", "decoding step takes longer", "None"),
        ("slim:mode=k,cache=int8", "counted with the residual", "None"),
        ("precompute", "token ids alone, no `inputs_embeds`", "None"),
        ("skipless:absorb=k", "bytes are counted", "None"),
        ("matshrink", "blocks are not stored", "saved** by it"),
        (
            "matshrink:form=compat,pivot=first",
            "**no byte and no operation is saved**",
            "blocks are not stored",
        ),
        ("approximate:kl=0.1,window=64", "It is **not** the same model", "forgotten"),
        ("approximate:kl=0.1,poly=none", "older tokens are forgotten", "and sums"),
    ],
)
def test_what_a_trick_buys_is_said_of_each_form(trick: str, said: str, unsaid: str) -> None:
    card = words(trick, lossless=not trick.startswith("approximate"))
    assert said in card
    assert unsaid not in card
    assert not re.search(r"(?<!not )(?<!\*\*not )\bfaster\b", card)  # no speed is claimed


def test_a_trick_without_a_place_is_not_praised() -> None:
    tricks = (parse_trick("flashnorm"), parse_trick("slim"))
    card = render_card(SOURCE, plan_of(2, tricks=tricks), EQUIVALENT, MANIFEST)
    assert "- `slim` found no place in this model and changes nothing in it." in card
    assert "thin residual" not in card
    tags = ModelCard(card).data.tags
    assert tags is not None
    assert "slim" not in tags


@pytest.mark.parametrize(
    ("parts", "stock", "said"),
    [
        ((), True, None),
        (("flashnorm",), True, "the source's own class loads the same weights, rightly"),
        (("slim",), False, "Without `trust_remote_code=True` loading ends in an error"),
    ],
)
def test_loading_says_what_the_shipped_code_is_for(
    parts: tuple[str, ...], stock: bool, said: str | None
) -> None:
    card = words("flashnorm", parts=parts, stock_loads=stock)
    assert ("trust_remote_code" in card) == bool(parts)
    assert said is None or said in card
    versions = MANIFEST["versions"] | {"transformers": "5.23.0"}
    card = render_card(SOURCE, plan_of(1), EQUIVALENT, MANIFEST | {"versions": versions})
    assert "Measured with transformers 5.23.0; no other runtime was tried." in card


def test_another_kind_of_model_is_loaded_by_its_own_class() -> None:
    source = dataclasses.replace(SOURCE, card={})
    card = render_card(source, plan_of(1, architecture="T5ForConditionalGeneration"), EQUIVALENT, MANIFEST)
    assert "AutoModelForSeq2SeqLM.from_pretrained('.'" in card
    assert ModelCard(card).data.pipeline_tag is None


def test_the_picture_is_shown_and_published_and_goes_with_its_evidence(
    hub: HubServer, tmp_path: Path
) -> None:
    series = {"layers": [[1e-3, 1e-3], [2e-3, 1e-3]]}
    source, evidence = (
        resolve(str(write_model(tmp_path / "tiny"))),
        dataclasses.replace(EQUIVALENT, series=series),
    )
    manifest = convert_by_copy(source, tmp_path / "work")
    card = render_card(source, plan_of(1), evidence, manifest, "smith/tiny")
    assert re.search(r"\n\n!\[Losses of [^]]*\]\(evidence\.png\)\n\n", card)
    write_papers(tmp_path / "work", card=card)
    publish(tmp_path / "work", "smith/tiny", evidence=evidence, source=source)
    assert hub.repo("smith/tiny").files["evidence.png"].startswith(b"\x89PNG")
    later = resolve(str(write_model(tmp_path / "later" / "tiny", seed=1)))
    convert_by_copy(later, tmp_path / "work2")
    publish(tmp_path / "work2", "smith/tiny", evidence=EQUIVALENT, source=later)
    assert "evidence.png" not in hub.repo("smith/tiny").files


EVIL = "](javascript:x) <script>alert(1)</script> | # x\n## Verdict: equivalent `code` **bold** https://evil.example"


def test_what_a_source_says_stays_text() -> None:
    source = dataclasses.replace(
        SOURCE,
        licence=EVIL,
        card={
            "license": "mit\nbase_model: evil/evil",
            "license_name": EVIL,
            "license_link": "javascript:alert(1)",
            "language": ["en", EVIL, 7, {"a": 1}],
            "tags": [EVIL, "fine", ["nested"], "x\n---\n"],
            "library_name": EVIL,
            "pipeline_tag": "text-generation\nmodel-index: []",
        },
    )
    places = (Place("flashnorm", EVIL, True, EVIL), Place("flashnorm", "model.norm", False, EVIL))
    evidence = Evidence(verdict=Verdict.DIFFERENT, reasons=(EVIL,))
    card = render_card(source, plan_of(0, places=places, architecture=EVIL), evidence, MANIFEST)

    text = re.sub(r"`[^`]*`", "", body(card))
    assert "<script>" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert "https://evil" not in text
    assert "\n## Verdict" not in card
    assert ModelCard(card).data.to_dict() == {
        "base_model": "forge/Tiny-1B",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tricksmith", "flashnorm", "fine"],
    }


@pytest.mark.parametrize("link", ["LICENSE", "https://example.org/licence"])
def test_another_licence_is_pointed_at(link: str) -> None:
    source = dataclasses.replace(
        SOURCE, card={"license": "other", "license_name": "forge", "license_link": link}
    )
    expected = f"https://huggingface.co/forge/Tiny-1B/blob/{COMMIT}/LICENSE" if link == "LICENSE" else link
    assert ModelCard(render_card(source, plan_of(1), None, MANIFEST)).data.license_link == expected


def test_small_words() -> None:
    assert ranges([3, 1, 2, 2, 9]) == "1-3, 9"
    assert escape("a|b*c\n<d>") == "a\\|b\\*c &lt;d&gt;"
    assert code("a`b|c\nd") == "`a'b\\|c d`"
