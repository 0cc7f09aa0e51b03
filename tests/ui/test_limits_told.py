"""What one user may ask for is said before anybody asks."""

from __future__ import annotations

from pathlib import Path

from service.limits import Limits
from service.preflight import preflight
from service.settings import Settings
from tricks import parse_trick
from ui.pages.limits import told


def test_limits_in_words() -> None:
    assert told(Limits()) == ""
    said = told(Limits(user_waiting=2, user_bytes=10**10, model_bytes=2 * 10**9, user_jobs=5))
    assert "models up to 2.0 GB; 5 jobs a day; 10.0 GB of models a day; 2 jobs waiting at a time" in said


def test_a_model_that_is_too_large_here_is_told_before_it_is_submitted(model: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, limits=Limits(model_bytes=1000), memory=10**6)
    seen = preflight(str(model), [parse_trick("flashnorm")], settings)
    assert any("0.00 GB at most" in text for text in seen.warnings)
    assert seen.memory_free == 10**6
    assert any("piece by piece" in text for text in seen.warnings)
