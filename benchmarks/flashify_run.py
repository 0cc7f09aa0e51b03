"""One timed `flashify_repo` in a fresh process: `benchmarks.flashify_run SOURCE OUT`, JSON on stdout.

Runs in the venv of transformer-tricks, which knows nothing of this project's packages.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.memory import peak, resident


def main() -> None:
    source, out = sys.argv[1], sys.argv[2]
    began = time.perf_counter()
    import torch
    import transformer_tricks  # type: ignore[import-not-found]
    import transformers.models.llama.modeling_llama  # noqa: F401

    # It asks the Hub whether the folder is a repository there; saying no at once spares it the network.
    transformer_tricks.repo_exists = lambda repo: False
    imported, at_import, cpu = time.perf_counter(), resident(), time.process_time()
    transformer_tricks.flashify_repo(source, dir=out)
    done = time.perf_counter()
    figures = {
        "import_s": imported - began,
        "work_s": done - imported,
        "cpu_s": time.process_time() - cpu,
        "import_rss": at_import,
        "peak_rss": peak(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
