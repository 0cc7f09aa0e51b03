"""lm-evaluation-harness on both models: the same requests in the same order and batches, paired.

Tasks run one by one through lm-eval's own model class and evaluator; only the model is loaded by us (so that
memory limits and shipped code are held here too). The converted model goes first: what it was asked, document
by document, is part of the key under which the source's answers are kept, so a re-conversion evaluates one
model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from evals.hub_data import measured, out_of_reach
from evals.models import Kind, Loaded, Place, loaded
from evals.passes import out_of_memory
from evals.precision import dtype_name
from evals.recipe import Recipe
from evals.tasks import Run, TaskResult, pair
from evals.text import load_text
from evals.tokenizer import load_tokenizer
from evals.verdict import Check
from tricks import BadInput, Cancelled, Report, TricksmithError, silent

OWN = Path(__file__).parent / "suite"
_NO_SPLIT = "the task {} has no test or validation split; give one that has"
SEED = 1234  # lm-eval's own
CHANCE = 1e-3  # of a false alarm, over all tasks and metrics together


@dataclass(frozen=True)
class Suite:
    """The recipe's tasks with their data, loaded once for both models."""

    tasks: dict[str, Any]


def load_tasks(recipe: Recipe) -> Suite | None:
    """Find the recipe's tasks and load their data; None where it has none.

    Raises:
        BadInput: a task is unknown, or its data are out of reach, or it has nothing to evaluate on.
    """
    if not recipe.tasks:
        return None
    with _calm():
        import lm_eval.tasks  # takes seconds to import, and many comparisons run no task

        own = lm_eval.tasks.TaskManager(include_path=str(OWN), include_defaults=False)
        everything = None
        found: dict[str, Any] = {}
        for name in recipe.tasks:
            manager = own
            if not _is_file(name) and name not in own.all_tasks:
                # lm-eval's own list takes ten seconds to read.
                everything = everything or lm_eval.tasks.TaskManager()
                manager = everything
                if name not in manager.all_tasks:
                    raise BadInput(
                        f"lm-eval knows no task {name!r}; give a name of its list or the path of a YAML file"
                    )
            found |= _load(manager, name)
    for task in found.values():
        _set_fewshot(task, recipe.fewshot)
    return Suite(found)


def check_recipe(recipe: Recipe, report: Report = silent, most: int | None = None) -> Suite | None:
    """Have the recipe's text and tasks within reach, before a model is loaded: what is the Hub's is fetched.

    Args:
        report: told of bytes fetched.
        most: bytes of disk that a data set may take; by default what is free.

    Returns:
        Its tasks, None where it has none.

    Raises:
        HubAway: the Hub does not answer.
        BadInput: they are not within reach for another reason, or make no sense.
    """
    if recipe.text is None and not recipe.tasks:
        return None
    with measured(report, most):
        if recipe.text is not None:
            load_text(recipe.text)
        return load_tasks(recipe)


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        tasks: dict[str, Any] = manager.load([str(Path(name).absolute()) if _is_file(name) else name])[
            "tasks"
        ]
    except Cancelled:
        raise
    except Exception as error:
        if "must have valid or test docs" in str(error):
            raise BadInput(_NO_SPLIT.format(name)) from error
        # Tasks are other people's code and data: whatever they raise, this one cannot be run.
        raise out_of_reach(error, f"the task {name}") from error
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False):
            raise BadInput(
                f"the task {name} runs code that a model wrote, which is not done here; leave it out"
            )
        if getattr(task, "MULTIMODAL", False):
            raise BadInput(f"the task {name} asks for pictures or sound; give a task of text")
        if not (task.has_test_docs() or task.has_validation_docs()):
            raise BadInput(_NO_SPLIT.format(name))
        try:
            empty = len(task.eval_docs) == 0
        except Exception as error:
            raise out_of_reach(error, f"the task {name}") from error
        if empty:
            raise BadInput(f"the task {name} has no documents to evaluate on; give one that has")
    return tasks


def run_tasks(
    suite: Suite,
    recipe: Recipe,
    source: Path,
    converted: Path,
    kind: Kind,
    place: Place,
    own_code: bool,
    cache: Path | None,
    report: Report,
) -> tuple[tuple[TaskResult, ...], list[str]]:
    """Every task on both models in the storage dtype, and what had to give way.

    Raises:
        BadInput: a task fails while it runs, or the source has no tokenizer to ask it with.
    """
    if not kind.decoder_only and kind is not Kind.SEQ2SEQ:
        raise BadInput(
            "lm-eval tasks ask in text and want text, which this model does not; leave the tasks out"
        )
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise BadInput(f"{source} has no tokenizer that loads, so no task can be asked; leave the tasks out")
    if recipe.chat_template and not tokenizer.chat_template:
        raise BadInput(f"{source} has no chat template; leave --chat-template out")
    notes: list[str] = []
    batch = recipe.batch
    with loaded(converted, kind, place, own_code) as found:
        after = {}
        for name in suite.tasks:
            after[name], batch = _run(suite, name, found, tokenizer, recipe, batch, report, notes)
    keys = {name: _key(source, run, recipe, place, batch) for name, run in after.items()}
    before = {name: run for name, key in keys.items() if (run := _read(cache, key)) is not None}
    cached = set(before)
    if len(before) < len(after):
        with loaded(source, kind, place) as found:
            for name in after:
                if name not in before:
                    before[name], _ = _run(suite, name, found, tokenizer, recipe, batch, report, notes)
                    _write(cache, keys[name], before[name])
    results = tuple(pair(before[name], after[name], recipe.margin, name in cached) for name in after)
    return results, notes


def task_checks(results: Sequence[TaskResult]) -> list[Check]:
    """One check on the least likely difference of all; none where nothing is paired."""
    chances = [
        (metric.chance, f"{task.task} {metric.name}")
        for task in results
        for metric in task.metrics
        if metric.chance is not None
    ]
    if not chances:
        return []
    chance, name = min(chances)
    label = f"probability by chance of the difference in {name}"
    return [Check(label, chance, CHANCE / len(chances), least=True)]


def _run(
    suite: Suite,
    name: str,
    found: Loaded,
    tokenizer: Any,
    recipe: Recipe,
    batch: int,
    report: Report,
    notes: list[str],
) -> tuple[Run, int]:
    """One task on one model, and the batch size at which it ran."""
    while True:
        try:
            with _calm():
                return _evaluate(suite, name, found, tokenizer, recipe, batch, report), batch
        except TricksmithError:
            raise
        except Exception as error:
            if out_of_memory(error) and batch > 1:
                batch //= 2
                notes.append(f"out of memory in {name}: went on with batches of {batch}")
                continue
            raise out_of_reach(error, f"the task {name}") from error


def _evaluate(
    suite: Suite, name: str, found: Loaded, tokenizer: Any, recipe: Recipe, batch: int, report: Report
) -> Run:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    class Counted(HFLM):  # type: ignore[misc]
        """lm-eval's model, which tells how many rows it has run."""

        rows = 0

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self._count(len(inps))
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            self._count(len(context))
            return super()._model_generate(context, *args, **kwargs)

        def _count(self, rows: int) -> None:
            self.rows += rows
            report("requests", self.rows, max(self.rows, total))

    task = suite.tasks[name]
    total = min(len(task.eval_docs), recipe.limit or len(task.eval_docs))
    backend = "seq2seq" if found.kind is Kind.SEQ2SEQ else "causal"
    lm: Any = Counted(
        pretrained=found.model,
        tokenizer=tokenizer,
        batch_size=batch,
        backend=backend,
        # Log-likelihoods summed in bfloat16 come in steps of half a nat; that noise is not the models'.
        softmax_dtype="float32",
    )
    lm._device = found.device  # of a model spread over memory and disk, the first layer's
    # What `simple_evaluate` does before and after takes twenty seconds a call: it reads the list of all tasks
    # anew and asks the machine for its every version.
    _seed(task)
    done = lm_eval.evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}, "groups": {}},
        limit=recipe.limit,
        apply_chat_template=recipe.chat_template,
        fewshot_as_multiturn=recipe.chat_template,
        log_samples=True,
        bootstrap_iters=0,
    )
    return _record(name, done)


def _seed(task: Any) -> None:
    """Every draw that lm-eval makes, as its `simple_evaluate` begins it."""
    random.seed(0)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    task.set_fewshot_seed(seed=SEED)


def _set_fewshot(task: Any, fewshot: int | None) -> None:
    """The number of examples, as `simple_evaluate` settles it: a task that says 0 keeps it."""
    default = task.get_config("num_fewshot")
    if default is None or (fewshot is not None and default != 0):
        task.set_config(key="num_fewshot", value=fewshot or 0)


def _record(name: str, done: Any) -> Run:
    samples = sorted(done["samples"][name], key=lambda sample: (sample["filter"], sample["doc_id"]))
    filters = sorted({sample["filter"] for sample in samples})
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault(_named(metric, sample["filter"]), []).append(sample[metric])
    asked = [
        hashlib.sha256(json.dumps(sample["arguments"], default=str).encode()).hexdigest()
        for sample in samples
        if sample["filter"] == filters[0]
    ]
    said = [
        response
        for sample in samples
        if sample["filter"] == filters[0]
        for request in sample["resps"]
        for response in request
    ]
    scores = {
        _named(*key.split(",", 1)): float(value)
        for key, value in done["results"][name].items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
    return Run(
        task=name,
        version=str(done["versions"].get(name)),
        fewshot=int(done["n-shot"].get(name, 0)),
        scores=scores,
        asked=asked,
        values=json.loads(json.dumps(values, default=_plain)),
        likelihoods=[_likelihood(response) for response in said if not isinstance(response, str)],
        texts=[response for response in said if isinstance(response, str)],
    )


def _named(metric: str, rule: str) -> str:
    return metric if rule == "none" else f"{metric} ({rule})"


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; anything else as words."""
    return value.item() if hasattr(value, "item") else str(value)


def _likelihood(response: Any) -> float:
    return float(response[0] if isinstance(response, (tuple, list)) else response)


# -- the source's answers, kept ------------------------------------------------------------------------


def _key(source: Path, run: Run, recipe: Recipe, place: Place, batch: int) -> str:
    """Names the source's answers: the same source, questions, settings and software, or another key."""
    import lm_eval

    what = {
        "source": source_digest(source),
        "task": run.task,
        "version": run.version,
        "asked": run.asked,
        "settings": [run.fewshot, recipe.limit, recipe.chat_template, batch],
        "dtype": dtype_name(place.dtype),
        "device": place.device.split(":")[0],
        "software": [lm_eval.__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def source_digest(folder: Path) -> str:
    """One digest of everything in the folder that can change what the model says."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".model", ".jinja", ".txt") and file.is_file():
            with file.open("rb") as data:
                total.update(f"{file.name} {hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _read(cache: Path | None, key: str) -> Run | None:
    if cache is None:
        return None
    try:
        return Run(**json.loads((cache / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # not there, or half of something: it is run again


def _write(cache: Path | None, key: str, run: Run) -> None:
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{key}.{os.getpid()}"
    partial.write_text(json.dumps(asdict(run)), encoding="utf-8")
    partial.replace(cache / f"{key}.json")


# -- calm ----------------------------------------------------------------------------------------------


@contextmanager
def _calm() -> Iterator[None]:
    """Keep lm-eval's logs and progress bars off the user's terminal; our own reports go another way."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(redirect_stderr(nowhere))
        stack.enter_context(redirect_stdout(nowhere))
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) and Path(task).is_file()
