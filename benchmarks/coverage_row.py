"""One line of the coverage table: a model type saved, planned, converted, loaded and compared."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.coverage_model import save
from tricks import TRICKS, BadInput, Trick, convert, make_plan, read_checkpoint
from tricks.families import architecture as class_of
from tricks.float64 import float64_arithmetic
from tricks.model import first_line
from tricks.proof import LIMIT, difference
from tricks.quiet import quiet

FORMS = TRICKS["flashnorm"]["form"].words[1:]
VERIFIED, NOTHING, REFUSED, WRONG = "verified", "nothing to fold", "refused", "WRONG"


@dataclass
class Row:
    """What came of one type.

    `left`: reason -> number of norms. `error`: relative, of float64 outputs, in the form `compat`. `forms`:
    the proof (the same kind of error) of each other form that applies, or why it does not.
    """

    family: str
    type: str
    architecture: str
    status: str
    norms: int = 0
    folded: int = 0
    left: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    reason: str | None = None
    forms: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0


def measure(family: str, model_type: str, architecture: str) -> Row:
    """Measure one type; a refusal is a row, too."""
    torch.set_num_threads(1)
    row = Row(family, model_type, architecture, REFUSED)
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="tricksmith-coverage-") as folder:
            _fill(row, Path(folder, "source"), Path(folder, "converted"))
    except BadInput as refusal:
        row.reason = _plain(str(refusal))
    except Exception as crash:  # noqa: BLE001 - a crash is what this table must not hide
        row.status, row.reason = "CRASH", f"{type(crash).__name__}: {first_line(crash)}"
    row.seconds = round(time.perf_counter() - begin, 2)
    return row


def _fill(row: Row, source: Path, out: Path) -> None:
    save(row.type, row.architecture, source)
    plan = make_plan(read_checkpoint(source), [Trick("flashnorm")])
    row.norms = len(plan.places)
    row.folded = sum(place.fits for place in plan.places)
    for form in FORMS:
        row.forms[form] = _form(source, form)
    row.left = dict(Counter(_plain(p.detail) for p in plan.places if not p.fits).most_common())
    if not plan.fits:
        row.status = NOTHING
        return
    convert(plan, source, out)
    with quiet():
        row.error = difference(_load(row.architecture, source), _load(row.architecture, out))
    row.status = VERIFIED if row.error <= LIMIT else WRONG


def _form(source: Path, form: str) -> float | str:
    try:
        plan = make_plan(read_checkpoint(source), [Trick("flashnorm", (("form", form),))])
    except BadInput as refusal:
        return f"refused: {_plain(str(refusal))}"
    if plan.proof is not None:
        return plan.proof
    reasons = Counter(_plain(place.detail) for place in plan.places)
    return reasons.most_common(1)[0][0] if reasons else "the model has no norms with gains"


def _load(architecture: str, folder: Path) -> torch.nn.Module:
    stock = class_of(architecture)
    with float64_arithmetic():  # some weights are made in float32, whatever dtype is asked for
        model = stock.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    loaded: torch.nn.Module = model.double().eval()
    return loaded


def _plain(text: str) -> str:
    """A reason without the numbers of layers and the paths of temporary folders."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", re.sub(r"/\S*/(source|converted)", "it", text))
