"""lm-evaluation-harness on both models: scores side by side, from its own model class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tricks import BadInput

Scores = dict[str, dict[str, dict[str, float]]]


def check_tasks(tasks: Sequence[str]) -> None:
    """Look the tasks up before anything is run.

    Raises:
        BadInput: lm-eval knows no such task and there is no such YAML file.
    """
    if not tasks:
        return
    unknown = [task for task in tasks if not _is_file(task)]
    if unknown:
        manager = _lm_eval().tasks.TaskManager()
        unknown = [task for task in unknown if task not in manager.all_tasks]
    if unknown:
        raise BadInput(
            f"lm-eval knows no task {unknown[0]!r}; give a name of its list or the path of a task YAML file"
        )


def run_tasks(
    tasks: Sequence[str], source: Path, converted: Path, dtype: str, device: str, own_code: bool
) -> Scores:
    """Task -> metric -> {"source": score, "converted": score}, in the storage dtype.

    Raises:
        BadInput: a task cannot be run (its data set is out of reach, or its file is no task).
    """
    if not tasks:
        return {}
    before = _scores(tasks, source, dtype, device, False)
    after = _scores(tasks, converted, dtype, device, own_code)
    return {
        task: {
            metric: {"source": score, "converted": after[task][metric]} for metric, score in metrics.items()
        }
        for task, metrics in before.items()
    }


def _scores(
    tasks: Sequence[str], folder: Path, dtype: str, device: str, own_code: bool
) -> dict[str, dict[str, float]]:
    lm_eval = _lm_eval()
    try:
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": dtype, "trust_remote_code": own_code},
            tasks=[str(Path(task).absolute()) if _is_file(task) else task for task in tasks],
            device=device,
            batch_size=1,
            log_samples=False,
            bootstrap_iters=0,
        )
    except Exception as error:
        # Tasks are other people's code and data: whatever they raise, this one did not run.
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(f"lm-eval could not run {', '.join(tasks)} on {folder}: {first}") from error
    return {task: _metrics(figures) for task, figures in results["results"].items()}


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    """`acc,none` -> `acc`; names, standard errors and sample counts are left out."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) and Path(task).is_file()


def _lm_eval() -> Any:
    import lm_eval  # takes seconds to import, and most comparisons run no task
    import lm_eval.tasks

    return lm_eval
