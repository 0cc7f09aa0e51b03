"""Slim attention settled by activations: the estimator A, the residual's directions, and its width by layer.

The source runs on the calibration text (`calibration.txt`; a model that hears also gets random features). For
each layer, second moments of what will be cached, rounded as the cache rounds it (P), and of the side that is
derived (D) are summed, over three windows in four to fit and over the fourth to measure. Then

- A = (PᵀP)⁻¹PᵀD, the linear estimator of D from the *rounded* P: it knows the noise and does not amplify it;
- errors are weighed by what they do to the attention's output after W_O: an error of head h's value at token
  j reaches output i times p_ij^h, so the weight of channels (h,a), (g,b) is mean_i Σ_j p_ij^h p_ij^g times
  (W_O W_Oᵀ)_(ha,gb). The residual takes the principal directions of the error so weighed;
- r is the least width at which the weighed error, measured on the windows left out, is at most `target` times
  that of a cache that rounds D itself to the storage dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

from tricks.edits import Edit, Make
from tricks.errors import BadInput
from tricks.families import architecture
from tricks.inputs import sample_inputs
from tricks.model import first_line
from tricks.place import Place
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.quiet import quiet
from tricks.slim import NAME, describe, edits_of, layer_bytes, round_up, table_bytes
from tricks.slim_algebra import OPERATION, as_integers, channels, condition

TEXT = Path(__file__).parent / "calibration.txt"
WINDOW, WINDOWS, BATCH = 256, 64, 4
LEAST_TOKENS = 2000
_DTYPES = {"BF16": (torch.bfloat16, 2.0**-7), "F16": (torch.float16, 2.0**-10)}
"""The cache's dtypes that need fitting, and their spacing at 1."""


@dataclass
class _Layer:
    """Sums over tokens for one layer; `fit` and `held` are [PᵀP, PᵀD, DᵀD] and a token count."""

    spec: dict[str, Any]
    edit: Make
    primary: torch.Tensor
    derived: torch.Tensor
    output: torch.Tensor | None
    fit: list[Any]
    held: list[Any]
    overlap: torch.Tensor | None = None


@dataclass(frozen=True)
class Fitted:
    """A layer's estimator Aᵀ [e_out, e_in] and, by falling weight, all directions R and L [e_out, e_out].

    `errors[r]` is the weighed error that a residual of width r leaves, over that of rounding D itself.
    """

    matrix: torch.Tensor
    right: torch.Tensor
    left: torch.Tensor
    errors: torch.Tensor


def settle(plan: Plan, source: Path, folder: Path, report: Report = silent) -> Plan:
    """`plan` with what slim attention chooses by activations; matrices go to a file in `folder`.

    A plan without such choices, or of weights in 32 bits or more (whose rounding the exact form of the plan
    does not feel), comes back as it is.

    Raises:
        BadInput: no tokenizer, too short a calibration text, or weights that are not finite.
    """
    specs = plan.config.get("tricksmith", {}).get(NAME, {}).get("layers", [])
    makes = [edit for edit in plan.edits if isinstance(edit, Make) and edit.operation == OPERATION]
    chosen = [spec for spec in specs if spec["mode"] in "kv"]
    if not chosen or not all(spec["integers"] for spec in chosen):
        return plan
    trick = next(trick for trick in plan.tricks if trick.name == NAME)
    dtype = makes[0].options["dtype"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet():
        model: Any = architecture(plan.architecture).from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager"
        )
    model = model.to(device).eval()
    layers = [_layer(model, spec, make) for spec, make in zip(chosen, makes, strict=True)]
    _observe(model, layers, source, _DTYPES[dtype][0], report)
    del model
    tensors: dict[str, torch.Tensor] = {}
    edits: dict[int, list[Edit]] = {}
    places: dict[str, Place] = {}
    kept = [spec for spec in specs if spec["mode"] not in "kv"]
    file = str(folder / "slim.safetensors")
    for number, layer in enumerate(layers):
        fitted = fit(layer.fit, layer.held, _weights(layer), _DTYPES[dtype][1])
        spec, place = _choose(layer, fitted, trick.option("residual"), float(trick.option("target")))
        places[layer.spec["module"]] = place
        edits[id(layer.edit)] = []
        if spec is None:
            continue
        rank = spec["residual"]
        for key, value in (("A", fitted.matrix), ("R", fitted.right[:, :rank]), ("L", fitted.left[:rank])):
            tensors[f"{number}.{key}"] = value.cpu().contiguous()
        names = layer.edit.inputs
        shape = layer.edit.outputs["rest"].shape if "rest" in layer.edit.outputs else ()
        straight = not layer.edit.options["transposed"]
        if shape:
            grown = list(shape)
            grown[0 if straight else 1] += spec["shape"][0]
            shape = tuple(grown)
        edits[id(layer.edit)] = edits_of(
            spec, names["primary"], names["derived"], dtype, shape, straight, {"file": file, "layer": number}
        )
        kept.append(spec)
    save_file(tensors, file)
    order = {spec["module"]: place for place, spec in enumerate(specs)}
    kept.sort(key=lambda spec: order[spec["module"]])
    return _with(plan, kept, specs, edits, places)


def _with(
    plan: Plan,
    kept: list[dict[str, Any]],
    specs: list[dict[str, Any]],
    edits: dict[int, list[Edit]],
    places: dict[str, Place],
) -> Plan:
    """The plan with settled layers in the place of planned ones."""
    new: list[Edit] = []
    skip: set[str] = set()
    for edit in plan.edits:
        if id(edit) in edits:
            assert isinstance(edit, Make)
            skip.add(edit.inputs["derived"])
            new += edits[id(edit)]
        elif not (type(edit).__name__ == "Drop" and getattr(edit, "tensor", "") in skip):
            new.append(edit)
    width = 2
    change = sum(layer_bytes(s, width) for s in kept if s["mode"] in "kv") + table_bytes(kept, width)
    change -= sum(layer_bytes(s, width) for s in specs if s["mode"] in "kv") + table_bytes(specs, width)
    gone = [s for s in specs if s["module"] not in {k["module"] for k in kept}]
    change += sum(width * (s["shape"][0] + s["shape"][1]) for s in gone)
    savings = dict(plan.savings)
    savings["cache_bytes_per_token_after"] += change
    savings["slim_layers"] = len(kept)
    config = {**plan.config, "tricksmith": {**plan.config["tricksmith"], NAME: {"layers": kept}}}
    return replace(
        plan,
        edits=tuple(new),
        config=config,
        savings=savings,
        places=tuple(places.get(p.where, p) if p.trick == NAME else p for p in plan.places),
    )


# --- choosing --------------------------------------------------------------------------------------


def fit(fit_sums: list[Any], held_sums: list[Any], weights: torch.Tensor | None, spacing: float) -> Fitted:
    """Estimator, directions and errors of one layer.

    Args:
        fit_sums, held_sums: PᵀP [e_in, e_in], PᵀD [e_in, e_out], DᵀD [e_out, e_out] and the tokens summed.
        weights: how errors of D's channels count together [e_out, e_out]; None counts them alike.
        spacing: the gap between numbers of the cache's dtype at 1.
    """
    pp, pd = fit_sums[:2]
    ridge = 1e-9 * pp.diagonal().mean() * torch.eye(len(pp), dtype=pp.dtype, device=pp.device)
    numbers, rows, columns = as_integers(torch.linalg.solve(pp + ridge, pd).T)
    matrix = numbers * rows[:, None] * columns
    error, left_out = (_error(sums, matrix.T) for sums in (fit_sums, held_sums))
    if weights is None:
        weights = torch.eye(len(error), dtype=error.dtype, device=error.device)
    values, vectors = torch.linalg.eigh(weights)
    values = values.clamp_min(values.max() * 1e-6).sqrt()
    root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    spread, directions = torch.linalg.eigh(root @ error @ root)
    spread, directions = spread.flip(0).clamp_min(1e-30).sqrt(), directions.flip(1)
    # Each direction is scaled to unit spread, so that one 8-bit scale for all of them wastes nothing.
    right, left = root @ directions / spread, (inverse @ directions * spread).T
    remaining = ((directions.T @ root) * (directions.T @ root @ left_out)).sum(1).clamp_min(0)
    total = remaining.sum()
    left_by_rank = torch.cat([total[None], total - remaining.cumsum(0)]).clamp_min(0)
    stored = remaining * (4.0 / 126) ** 2 / 12  # the 8-bit step of a row whose largest is 4 spreads
    left_by_rank[1:] += stored.cumsum(0)
    rounding = (held_sums[2].diagonal() / held_sums[3] * weights.diagonal()).sum() * spacing**2 / 24
    return Fitted(matrix, right, left, (left_by_rank / rounding).sqrt())


def _error(sums: list[Any], estimator: torch.Tensor) -> torch.Tensor:
    """The mean of EᵀE for E = D − P·A."""
    pp, pd, dd, count = sums
    cross = pd.T @ estimator
    error: torch.Tensor = (dd - cross - cross.T + estimator.T @ pp @ estimator) / count
    return error


def _choose(layer: _Layer, fitted: Fitted, asked: str, target: float) -> tuple[dict[str, Any] | None, Place]:
    """The layer's specification, settled, or None where a standard cache is as small; and its place."""
    spec = dict(layer.spec)
    before = 2 * (spec["shape"][0] + spec["shape"][1])
    number = condition(layer.primary)
    if asked == "auto":
        enough = (fitted.errors <= target).nonzero()
        rank = int(enough[0]) if len(enough) else len(fitted.errors)
        rank = max(round_up(rank, spec["shape"][2]), spec["least"])
    else:
        rank = int(asked)
    spec["residual"] = rank
    where = spec["module"]
    if rank >= len(fitted.errors) or layer_bytes(spec, 2) >= before:
        reason = (
            f"its key projection (condition number {number:.1e}) needs a residual of {rank}: nothing gained"
        )
        return None, Place(NAME, where, False, reason)
    error = float(fitted.errors[rank])
    spec["condition"], spec["error"] = float(f"{number:.3g}"), float(f"{error:.3g}")
    detail = describe(spec, before, layer_bytes(spec, 2))
    detail += f"; condition number {number:.1e}, error {error:.2f} times that of a rounded cache"
    return spec, Place(NAME, where, True, detail)


def _weights(layer: _Layer) -> torch.Tensor | None:
    """How errors of value channels count together after W_O [e_v, e_v]; None for keys."""
    if layer.spec["mode"] != "k" or layer.output is None:
        return None
    heads, groups = layer.spec["heads"], layer.spec["groups"]
    out = layer.output.double()
    size = out.shape[1] // (heads * groups)
    overlap = layer.overlap
    if overlap is None:
        overlap = torch.eye(heads * groups, dtype=torch.float64, device=out.device)
    spread = overlap.repeat_interleave(size, 0).repeat_interleave(size, 1)
    together = (out.T @ out * spread).view(heads, groups, size, heads, groups, size).sum((1, 4))
    return together.reshape(heads * size, heads * size)


# --- observing -------------------------------------------------------------------------------------


def _layer(model: nn.Module, spec: dict[str, Any], make: Make) -> _Layer:
    module = model.get_submodule(spec["module"])

    def weight(path: str) -> torch.Tensor:
        linear: Any = module.get_submodule(path)
        found: torch.Tensor = linear.weight.detach()
        return found if isinstance(linear, nn.Linear) else found.T

    primary = channels(weight(spec["primary_linear"]), make.options["primary"])
    derived = channels(weight(spec["derived_linear"]), make.options["derived"])
    if not torch.isfinite(primary).all() or not torch.isfinite(derived).all():
        raise BadInput(
            f"{spec['module']}: its projections hold NaN or Inf, so the model is broken; repair it"
        )
    output = weight(spec["out_linear"]) if spec["out_linear"] else None
    return _Layer(spec, make, primary.double().cpu(), derived.double().cpu(), output, [], [])


def _observe(model: Any, layers: list[_Layer], source: Path, dtype: torch.dtype, report: Report) -> None:
    """Fill the layers' sums by running the model on the calibration text."""
    windows = _windows(source, model)
    handles = []
    state = {"held": False}
    for layer in layers:
        module = model.get_submodule(layer.spec["module"])
        linear = module.get_submodule(layer.spec["primary_linear"])
        handles.append(linear.register_forward_pre_hook(_summing(layer, dtype, state)))
        handles.append(module.register_forward_hook(_overlapping(layer)))
    try:
        report("calibration tokens", 0, windows.numel())
        for number, part in enumerate(windows.split(BATCH)):
            state["held"] = number % 4 == 3
            _run(model, part, number)
            report(
                "calibration tokens",
                min((number + 1) * BATCH * part.shape[1], windows.numel()),
                windows.numel(),
            )
    finally:
        for handle in handles:
            handle.remove()


def _windows(source: Path, model: Any) -> torch.Tensor:
    """Token ids of the calibration text [n, WINDOW or what the model can take]."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise BadInput(
            "slim attention is fitted to text, and this folder holds no tokenizer that can be read; add it"
        ) from error
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    config = model.config.get_text_config(decoder=True)
    most = [
        getattr(config, name, None)
        for name in ("max_position_embeddings", "n_positions", "max_target_positions")
    ]
    length = min([WINDOW, *(limit for limit in most if isinstance(limit, int) and limit > 0)])
    count = min(len(ids) // length, WINDOWS * WINDOW // length)
    if count * length < LEAST_TOKENS:
        raise BadInput(
            f"the calibration text is {len(ids)} tokens of this tokenizer, and {LEAST_TOKENS} are the least"
        )
    return torch.tensor(ids[: count * length]).view(count, length)


def _inputs(model: Any, part: torch.Tensor, seed: int) -> Iterator[dict[str, Any]]:
    """The model's arguments for a batch of windows, the likeliest first; what is no text is random."""
    device = next(model.parameters()).device
    for given in sample_inputs(model, seed):
        made: dict[str, Any] = {"use_cache": False} if "use_cache" in given else {}
        for name, value in given.items():
            if name in ("input_ids", "decoder_input_ids"):
                made[name] = part.to(device)
            elif isinstance(value, torch.Tensor):
                made[name] = value[torch.arange(len(part)) % len(value)].to(device)
        yield made


def _run(model: Any, part: torch.Tensor, seed: int) -> None:
    """One batch through the model.

    Raises:
        BadInput: it takes none of the inputs that fit its signature.
    """
    problem = "it takes no text"
    for inputs in _inputs(model, part, seed):
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
            problem = first_line(error)
            continue
        return
    raise BadInput(f"{type(model).__name__} cannot be run on the calibration text: {problem}")


def _summing(layer: _Layer, dtype: torch.dtype, state: dict[str, bool]) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        x = args[0].detach().flatten(0, -2).double()
        primary, derived = layer.primary.to(x.device), layer.derived.to(x.device)
        cached = (x @ primary.T).to(dtype).double()
        made = x @ derived.T
        sums = [cached.T @ cached, cached.T @ made, made.T @ made, len(x)]
        into = layer.held if state["held"] else layer.fit
        if not into:
            into += sums
        else:
            for place, value in enumerate(sums):
                into[place] += value

    return hook


def _overlapping(layer: _Layer) -> Any:
    """Sums mean_i Σ_j p_ij^h p_ij^g [h, h] where the module returns its softmax weights."""

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        found = (
            [t for t in out if isinstance(t, torch.Tensor) and t.ndim == 4] if isinstance(out, tuple) else []
        )
        weights = next((t for t in found if t.shape[-1] == t.shape[-2]), None)
        if weights is not None:
            wide = weights.double().transpose(0, 1).flatten(1)
            product = wide @ wide.T / (weights.shape[0] * weights.shape[2])
            layer.overlap = product if layer.overlap is None else layer.overlap + product

    return hook
