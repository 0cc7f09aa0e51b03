"""The polynomials of approximate attention, fitted to the dot products that a model's text really has.

The source runs on the calibration text with an attention that answers exactly and, on the way, counts the
dot products with tokens that have left the window: one histogram per layer, whatever the text's length.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer
from transformers.masking_utils import eager_mask

from tricks.errors import BadInput
from tricks.families import architecture
from tricks.place import Place
from tricks.plan import Plan
from tricks.polynomials import coefficients
from tricks.progress import Report, silent
from tricks.quiet import quiet
from tricks.recipe import Trick
from tricks.shipped.modeling_approximate import attend

NAME = "approximate"
OBSERVED = "observed"
TEXT = Path(__file__).parent / "calibration.txt"
TAILS = 0.01
"""Share of the dot products left out on either side: fitted to those few, all others would fare worse."""
_TOKENS, _BATCH = 8192, 2
_QUERIES = 64
"""Queries of a text that are looked at, at equal distances; each meets all older tokens."""
_LEAST, _MOST, _BINS = -60.0, 60.0, 2400


def settle(plan: Plan, source: Path, report: Report = silent) -> Plan:
    """`plan` with each layer's polynomial on the range that is observed there.

    A plan whose range is stated, or whose polynomial needs none, comes back as it is.

    Raises:
        BadInput: no tokenizer, or no text of the model leaves the window.
    """
    trick = next((trick for trick in plan.tricks if trick.name == NAME), None)
    options = plan.config.get("tricksmith", {}).get(NAME)
    if trick is None or options is None or not observes(trick):
        return plan
    with quiet():
        model: Any = architecture(plan.architecture).from_pretrained(source, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    rows = windows(source, model, options["window"] + options["sinks"])
    ranges = observed(model, rows, options["window"], options["sinks"], report)
    layers = {path: fit(trick, *between) for path, between in ranges.items()}
    places = [_told(place, ranges) for place in plan.places]
    config = {**plan.config, "tricksmith": {**plan.config["tricksmith"], NAME: {**options, "layers": layers}}}
    return replace(plan, config=config, places=tuple(places))


def observes(trick: Trick) -> bool:
    """Whether the trick's polynomial depends on a range that is not stated."""
    stated = OBSERVED not in (trick.option("low"), trick.option("high"))
    return not stated and trick.option("poly") in ("chebyshev", "minimax")


def fit(trick: Trick, low: float, high: float) -> list[float]:
    """Coefficients of the trick's polynomial, on [low, high] where it does not state another range."""
    if trick.option("poly") == "none":
        return []
    stated = trick.option("low"), trick.option("high")
    low, high = (
        seen if text == OBSERVED else float(text) for text, seen in zip(stated, (low, high), strict=True)
    )
    if low >= high:
        raise BadInput(
            f"{NAME}: low={low:g} is not below high={high:g}, the range of the dot products; leave both out, "
            "so that they are observed"
        )
    degree, parts = int(trick.option("degree")), int(trick.option("parts"))
    return coefficients(trick.option("poly"), degree, low, high, parts)


def windows(source: Path, model: Any, exact: int) -> torch.Tensor:
    """Token ids of the calibration text [n, W], with W at least twice the `exact` tokens if the model can.

    Raises:
        BadInput: no tokenizer, or the text or the model ends before a token leaves the window.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise BadInput(
            f"{NAME}: the range of the dot products is observed on text, and this folder holds no tokenizer "
            "that can be read; add it, or state low= and high="
        ) from error
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions")
    most = [limit for name in names if isinstance(limit := getattr(config, name, None), int) and limit > 0]
    length = min([max(2 * exact, 512), len(ids), *most])
    if length <= exact + 1:
        raise BadInput(
            f"{NAME}: texts of {length} tokens are the longest there are, and {exact} are exact anyhow; "
            "choose a smaller window"
        )
    count = max(min(len(ids), _TOKENS) // length, 1)
    return torch.tensor(ids[: count * length]).view(count, length)


def observed(
    model: Any, rows: torch.Tensor, window: int, sinks: int, report: Report = silent
) -> dict[str, tuple[float, float]]:
    """Attention module -> the range of its scaled dot products with tokens beyond window and sinks.

    Args:
        rows: token ids [n, W].
    """
    names = {id(module): path for path, module in model.named_modules()}
    counts: dict[str, torch.Tensor] = {}
    exact: dict[str, Any] = {"window": 1 << 30, "sinks": 0, "parts": 1, "coefficients": []}

    def watch(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        path = names[id(module)]
        shared, length = key.shape[1], key.shape[2]
        at = torch.linspace(window + sinks, length - 1, _QUERIES, device=key.device).long()
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        asked = (query[:, :, at] * scale).unflatten(1, (shared, -1))
        x = torch.einsum("bkgtd,bksd->bkgts", asked.float(), key.float())
        places = torch.arange(length, device=key.device)
        old = (places <= at[:, None] - window) & (places >= sinks)
        found = torch.histc(x[..., old].clamp(_LEAST, _MOST), _BINS, _LEAST, _MOST).cpu()
        counts[path] = counts[path] + found if path in counts else found
        module.tricksmith_approximate = exact
        return attend(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(f"tricksmith_{OBSERVED}", watch)
    AttentionMaskInterface.register(f"tricksmith_{OBSERVED}", eager_mask)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = f"tricksmith_{OBSERVED}"
    for done, part in enumerate(rows.split(_BATCH)):
        with torch.no_grad():
            model(input_ids=part.to(model.device), use_cache=False)
        report("calibration tokens", min((done + 1) * _BATCH, len(rows)) * rows.shape[1], rows.numel())
    return {path: (_quantile(found, TAILS), _quantile(found, 1 - TAILS)) for path, found in counts.items()}


def _quantile(counts: torch.Tensor, share: float) -> float:
    """The middle of the bin that holds the quantile."""
    below = counts.double().cumsum(0)
    place = int((below < share * below[-1]).sum())
    return _LEAST + (min(place, _BINS - 1) + 0.5) * (_MOST - _LEAST) / _BINS


def _told(place: Place, ranges: dict[str, tuple[float, float]]) -> Place:
    if place.trick != NAME or place.where not in ranges:
        return place
    low, high = ranges[place.where]
    return replace(place, detail=f"{place.detail}, fitted to dot products from {low:.1f} to {high:.1f}")
