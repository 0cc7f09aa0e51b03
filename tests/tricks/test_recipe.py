"""Tricks as users write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricks import BadInput, parse_trick


def test_a_default_option_is_not_repeated() -> None:
    assert str(parse_trick("flashnorm:form=compat")) == "flashnorm"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flashnrom", "unknown trick 'flashnrom'; known: .*flashnorm"),
        ("flashnorm:", "ends in a colon"),
        ("flashnorm:speed=9", "no option 'speed'"),
        ("flashnorm:form=fast", "takes one of: compat"),
        ("flashnorm:form=compat,form=compat", "given twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_trick(text)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(BadInput):
        assert parse_trick(str(parse_trick(text))) == parse_trick(text)
