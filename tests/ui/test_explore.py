"""What the first page shows of a model, and of names and figures that mean no good."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as Xml
from pathlib import Path

import pytest

from benchmarks.deep import config, header
from service.explore import QUICK, explore, figures
from tests.hub_models import small_llama
from tests.hub_server import HubServer
from tricks import (
    TRICKS,
    BadInput,
    Part,
    Place,
    Plan,
    Trick,
    checkpoint_from_headers,
    make_plan,
    parse_trick,
    survey,
)
from tricks.options import Choice
from ui.pages import charts, found
from ui.pages.exploring import looked_at
from ui.pages.options import Field, Options
from ui.pages.picture import picture
from ui.pages.words import about, about_choice, about_option

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def test_every_known_trick_is_looked_at(model: Path) -> None:
    seen = explore(str(model))
    assert [look.trick.name for look in seen.looks] == list(TRICKS)
    assert seen.figures.layers == 6
    assert seen.figures.cache_per_token == 4608
    shown = found.facts(seen) + found.wiring(seen) + found.cards(seen)
    assert "3.44 M" in shown
    assert shown.count('class="ts-card"') == len(TRICKS)
    assert "4.6 kB → 2.4 kB" in found.cards(seen)  # 2,416: keys, a residual, a position of 4 bytes
    assert "2.1 MB</b> more to store" in found.cards(seen)
    fitting = [(look.trick.name, look.plan) for look in seen.looks if look.plan]
    assert set(charts.cache(seen.figures, fitting, 1)["model"]) == {"source", "slim"}
    assert next(iter(charts.weights(seen)["model"])) == "source"


def test_a_trick_is_looked_at_with_the_options_that_were_chosen_for_it(model: Path) -> None:
    asked = looked_at(["approximate:kl=0.05"], ["approximate", "flashnorm"])
    assert asked == ["flashnorm", "approximate:kl=0.05"]
    chosen, bare = (explore(str(model), None, tricks).looks[-1] for tricks in (asked, ["approximate"]))
    assert chosen.fits
    assert not bare.fits
    assert "no budget" in found.cards(explore(str(model), None, ["approximate"]))


def test_the_picture_shows_each_kind_of_layer_once_and_what_a_trick_touches(model: Path) -> None:
    seen = explore(str(model))
    plan = next(look.plan for look in seen.looks if look.trick.name == "flashnorm")
    assert plan is not None
    drawn = Xml.fromstring(picture(seen.parts, [(0, plan)], "tiny"))
    names = [element.text for element in drawn.iter("text")]
    assert names.count("q_proj") == 1
    assert names.count("F") == 3  # both norms of a layer, and the last one
    assert "× 6" in "".join(map(str, names))
    assert "input_layernorm (flashnorm)" in drawn.attrib["aria-label"]


def test_names_from_outside_stay_text() -> None:
    parts = [Part(EVIL, "linear", 1, (2, 2)), Part(f"{EVIL}.norm", "norm", 1, (2,))]
    plan = Plan(EVIL, EVIL, (parse_trick("flashnorm"),), (Place(EVIL, EVIL, True, EVIL),))
    drawn = picture(parts, [(0, plan)], EVIL)
    assert "<script" not in drawn
    assert "<img" not in drawn


def test_options_become_a_recipe_and_back() -> None:
    options = Options({}, tuple(Field(t, n, None) for t, o in TRICKS.items() for n in o))  # type: ignore[arg-type]
    values = [
        "strict" if (field.trick, field.option) == ("flashnorm", "form") else field.spec.default
        for field in options.fields
    ]
    chosen = ["flashnorm"]
    recipe = options.recipe(chosen, values)
    assert [str(parse_trick(text)) for text in recipe] == ["flashnorm:form=strict"]
    back, again = options.values(recipe)
    assert (back, options.recipe(back, again)) == (chosen, recipe)
    # An address that somebody made up chooses nothing that is not there, and keeps defaults.
    assert options.values([EVIL, "flashnorm:form=" + EVIL])[1] == [f.spec.default for f in options.fields]


def test_every_option_and_choice_has_words_for_people() -> None:
    for trick, options in TRICKS.items():
        assert about(trick)
        for name, option in options.items():
            assert about_option(trick, name).label != name
            for choice in option.words if isinstance(option, Choice) else ():
                # The word of recipes stays, for those who know it.
                assert re.fullmatch(rf".{{4,}} \({choice}\)", about_choice(trick, name, choice))


@pytest.mark.parametrize("layers", [400])
def test_a_very_deep_model_is_seen_in_seconds(layers: int) -> None:
    checkpoint = checkpoint_from_headers(config(layers), {"model.safetensors": header(layers)}, None, "deep")
    survey(checkpoint, [parse_trick("flashnorm")])  # what is imported and set up once is not the preview's
    began = time.thread_time()
    parts, looks = survey(checkpoint, [Trick(name) for name in QUICK])
    plan = make_plan(checkpoint, [parse_trick("flashnorm")])
    picture(parts, [(0, plan)], "deep")
    # This thread's own time: other processes of a busy machine do not count.
    took = time.thread_time() - began
    assert next(look for look in looks if look.trick.name == "flashnorm").fits
    assert plan.proof is not None
    assert len(parts) == 12
    assert took < 3
    assert figures(checkpoint).layers == layers


def test_suggestions_are_public_models_by_downloads(hub: HubServer, tmp_path: Path) -> None:
    from service.search import search

    hub.add_model("forge/few", small_llama(tmp_path / "few"))
    hub.add_model("forge/many", small_llama(tmp_path / "many"))
    assert search("x") == []
    hub.repo("forge/many").downloads = 5
    found = search("forge/")
    assert [(hit.model, hit.downloads) for hit in found] == [("forge/many", 5), ("forge/few", 0)]


def test_a_giant_option_is_refused_in_a_line() -> None:
    options = Options({}, (Field("flashnorm", "form", None),))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="3,000,000 characters") as refused:
        options.recipe(["flashnorm"], ["x" * 3_000_000])
    assert len(str(refused.value)) < 200
