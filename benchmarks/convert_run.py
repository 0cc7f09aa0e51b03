"""One timed conversion in a fresh process: `benchmarks.convert_run SOURCE OUT`, JSON on stdout.

Importing is timed apart, what planning would import later included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.memory import peak, resident


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    began = time.perf_counter()
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from tricks import convert, make_plan, parse_trick, read_checkpoint

    get_checkpoint_conversion_mapping("llama")  # transformers builds its table of renamings on first use
    imported, at_import, cpu = time.perf_counter(), resident(), time.process_time()
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    planned, at_plan = time.perf_counter(), peak()
    convert(plan, source, out)
    done = time.perf_counter()
    figures = {
        "import_s": imported - began,
        "plan_s": planned - imported,
        "work_s": done - imported,
        "cpu_s": time.process_time() - cpu,
        "import_rss": at_import,
        "plan_rss": at_plan,
        "peak_rss": peak(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
