"""Activations that slim attention is settled by: a model runs on the calibration text and is watched.

Of every layer second moments are kept (see `slim_fit`), over three batches of windows in four to fit and over
the fourth to judge; of every other batch also the gradients. A model that hears gets random features beside
text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from tricks.errors import BadInput
from tricks.inputs import sample_inputs
from tricks.model import first_line
from tricks.progress import Report
from tricks.quiet import quiet
from tricks.slim_algebra import channels
from tricks.slim_fit import Sums, as_cached

TEXT = Path(__file__).parent / "calibration.txt"
WINDOW, WINDOWS, BATCH = 256, 64, 4
LEAST_TOKENS = 2000


@dataclass
class Watched:
    """One way to cache a layer, and what was seen of it.

    `primary` [e_in, d] and `derived` [e_out, d] are weights in float64; the inputs' moments are shared by a
    layer's ways. `lost` [e_in] sums the squares of what rounding to the nearest loses of P over `fitting`.
    `scales` [e_in] are the channels' of an 8-bit cache, set by the first batch. `fisher` sums g·gᵀ of P and D
    [e_in + e_out, e_in + e_out] over `graded` tokens.
    """

    spec: dict[str, Any]
    primary: torch.Tensor
    derived: torch.Tensor
    fitting: Sums
    held: Sums
    lost: torch.Tensor | float = 0.0
    scales: torch.Tensor | None = None
    fisher: torch.Tensor | None = None
    graded: int = 0
    pending: dict[str, torch.Tensor] = field(default_factory=dict)

    def noise(self) -> torch.Tensor:
        """The variance of the rounding of each channel of P [e_in]."""
        return torch.as_tensor(self.lost) / self.fitting.count


def fisher(watched: Watched) -> torch.Tensor | None:
    """F of P and D together, per token; None where nothing was differentiated."""
    return None if watched.fisher is None else watched.fisher / watched.graded


def watch(model: nn.Module, spec: dict[str, Any], fitting: Sums, held: Sums) -> Watched:
    """A specification with the weights of its two sides, and the sums to gather its inputs in.

    Raises:
        BadInput: a weight is not finite.
    """
    module = model.get_submodule(spec["module"])

    def weight(side: str) -> torch.Tensor:
        linear: Any = module.get_submodule(spec[side + "_linear"])
        found: torch.Tensor = linear.weight.detach()
        return channels(found if isinstance(linear, nn.Linear) else found.T, spec[side]).double()

    primary, derived = weight("primary"), weight("derived")
    if not torch.isfinite(primary).all() or not torch.isfinite(derived).all():
        raise BadInput(
            f"{spec['module']}: its projections hold NaN or Inf, so the model is broken; repair it first"
        )
    return Watched(spec, primary, derived, fitting, held)


def observe(
    model: Any, layers: Sequence[Sequence[Watched]], source: Path, dtype: torch.dtype, report: Report
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Fill what is known of the layers by running the model, in float32, on the calibration text.

    Args:
        layers: for each layer the ways to cache it.
        dtype: of the cache.

    Returns:
        A batch of windows [BATCH, W] and the log-probabilities at them, window by window [1, W, vocabulary].

    Raises:
        BadInput: no tokenizer, too short a text, or the model takes no text.
    """
    windows = _windows(source, model)
    state = {"held": False}
    handles = []
    for ways in layers:
        module = model.get_submodule(ways[0].spec["module"])
        linear = module.get_submodule(ways[0].spec["primary_linear"])
        handles.append(linear.register_forward_pre_hook(_summing(ways, dtype, state)))
        for one in ways:
            for side in ("primary", "derived"):
                linear = module.get_submodule(one.spec[f"{side}_linear"])
                handles.append(linear.register_forward_hook(_grading(one, side)))
    kept: list[torch.Tensor] = []
    last = windows[:BATCH]
    try:
        for number, batch in enumerate(windows.split(BATCH)):
            state["held"] = number % 4 == 3
            if number % 2:
                seen = [_graded(model, row[None], number) for row in batch]
                if state["held"]:
                    last, kept = batch, seen
            else:
                with torch.no_grad():
                    run(model, batch, number)
            done = min((number + 1) * BATCH, len(windows)) * windows.shape[1]
            report("calibration tokens", done, windows.numel())
    finally:
        for handle in handles:
            handle.remove()
    return last, kept


def own_noise(model: Any, windows: torch.Tensor, exact: Sequence[torch.Tensor]) -> float:
    """The divergence, in nats a token, of a model in its storage dtype from its exact log-probabilities."""
    total = 0.0
    for number, (row, expected) in enumerate(zip(windows, exact, strict=True)):
        with torch.no_grad():
            found = run(model, row[None], number).float().log_softmax(-1).to(expected.device)
        total += float((expected.exp() * (expected - found)).sum(-1).mean())
    return total / len(exact)


def run(model: Any, part: torch.Tensor, seed: int) -> torch.Tensor:
    """The logits of windows [B, W].

    Raises:
        BadInput: the model takes none of the inputs that fit its signature.
    """
    problem = "it takes no text"
    for inputs in _inputs(model, part, seed):
        try:
            logits: torch.Tensor = model(**inputs).logits
        except Exception as error:  # noqa: BLE001 - modelling code can fail in any way
            problem = first_line(error)
            continue
        return logits
    raise BadInput(f"{type(model).__name__} cannot be run on the calibration text: {problem}")


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


def _graded(model: Any, row: torch.Tensor, seed: int) -> torch.Tensor:
    """Log-probabilities [1, W, vocabulary] at a window, after a backward pass from words drawn from them."""
    found = run(model, row, seed).log_softmax(-1)
    # Inverse-CDF sampling by numbers from a generator of our own: no global state is touched.
    drawn = torch.rand(found.shape[:-1], generator=torch.Generator().manual_seed(int(row.sum()))).to(found)
    words = torch.searchsorted(found.detach().exp().cumsum(-1), drawn[..., None]).clamp_max(
        found.shape[-1] - 1
    )
    if found.requires_grad:
        found.gather(-1, words).sum().backward()
    return found.detach()


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
    names = ("max_position_embeddings", "n_positions", "max_target_positions")
    most = [getattr(config, name, None) for name in names]
    length = min([WINDOW, *(limit for limit in most if isinstance(limit, int) and limit > 0)])
    count = min(len(ids) // length, WINDOWS * WINDOW // length) // BATCH * BATCH
    if count * length < LEAST_TOKENS or count < 4 * BATCH:
        raise BadInput(
            f"the calibration text is {len(ids)} tokens of this tokenizer, and {LEAST_TOKENS} in "
            f"{4 * BATCH} windows are the least; repair the tokenizer or give mode=x"
        )
    return torch.tensor(ids[: count * length]).view(count, length)


def _summing(ways: Sequence[Watched], dtype: torch.dtype, state: dict[str, bool]) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        x = args[0].detach().flatten(0, -2).double()
        (ways[0].held if state["held"] else ways[0].fitting).add(x)
        if state["held"]:
            return
        for one in ways:
            primary = x @ one.primary.T
            if one.spec["cached_bits"] == 8 and one.scales is None:
                one.scales = primary.square().mean(0).sqrt().clamp_min(1e-12).to(dtype).double()
            one.lost = one.lost + (as_cached(dtype, one.scales)(primary) - primary).square().sum(0)

    return hook


def _grading(one: Watched, side: str) -> Any:
    """Gradients with respect to a projection's output: the model is differentiated from there on."""
    groups, width, offset, size = one.spec[side]

    def graded(gradient: torch.Tensor) -> None:
        wide = gradient.double().unflatten(-1, (groups, width))[..., offset : offset + size]
        one.pending[side] = wide.flatten(-2).flatten(0, -2)
        if len(one.pending) == 2:
            g = torch.cat([one.pending.pop("primary"), one.pending.pop("derived")], 1)
            one.fisher = g.T @ g if one.fisher is None else one.fisher + g.T @ g
            one.graded += len(g)

    def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None
        with_gradient = out if out.requires_grad else out.detach().requires_grad_()
        with_gradient.register_hook(graded)
        return with_gradient.clone()  # what follows may change it in place

    return hook
