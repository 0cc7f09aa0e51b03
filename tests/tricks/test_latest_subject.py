"""A model that is looked at and then planned is read once; another model is never taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tricks import read_checkpoint
from tricks.draft import subject_of

_TINY = Path(__file__).resolve().parents[2] / "models" / "tiny-llama"


def test_what_was_read_last_is_read_once() -> None:
    assert subject_of(read_checkpoint(_TINY)) is subject_of(read_checkpoint(_TINY))


def test_another_config_or_name_is_another_model_even_where_it_was_changed_in_place() -> None:
    checkpoint = read_checkpoint(_TINY)
    first = subject_of(checkpoint)
    checkpoint.config["rms_norm_eps"] = 0.5
    changed = subject_of(checkpoint)
    assert changed is not first
    assert changed.config.rms_norm_eps == 0.5
    named = subject_of(replace(checkpoint, name="another"))
    assert named.checkpoint.name == "another"
