"""`tricksmith serve` is stopped while it works."""

from __future__ import annotations

import time
from pathlib import Path

from gradio_client import Client

from benchmarks.deep import deep_model
from ui.screenshots import served


def test_it_ends_well_while_somebodys_model_is_looked_at(tmp_path: Path) -> None:
    deep = deep_model(tmp_path / "deep", 40)
    with served(tmp_path / "data") as url:  # which looks at the exit code
        asked = Client(url, verbose=False).submit(str(deep), api_name="/explore")
        while asked.status().code.name != "PROCESSING":
            time.sleep(0.1)
        time.sleep(4)
        assert not asked.done()
