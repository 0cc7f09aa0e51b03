"""Several plans asked for at once come out as if each were alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.tricks.small_models import save_model
from tricks import TRICKS, Trick, read_checkpoint, survey


def test_surveys_in_threads_do_not_see_each_other(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save_model(tmp_path / "source", "llama", num_hidden_layers=1))
    tricks = [Trick(name) for name in TRICKS]

    def places() -> list[object]:
        return [(look.reason, look.plan and look.plan.places) for look in survey(checkpoint, tricks)[1]]

    alone = places()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: places(), range(4))) == [alone] * 4
