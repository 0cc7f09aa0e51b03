"""Sound for speech models: clips made by rule, so that no recording has to travel with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, PreTrainedModel

from evals.models import first_line, quiet
from tricks import BadInput

RATE = 16_000  # samples a second
SECONDS = 5


def clip(seed: int, rate: int = RATE) -> np.ndarray:
    """Five seconds of gliding tones with some noise, `(samples,)` float32 in [-1, 1], `rate` a second."""
    rng = np.random.default_rng(seed)
    t = np.arange(SECONDS * rate) / rate
    wave = 0.02 * rng.standard_normal(len(t))
    for _ in range(6):
        low, glide, beat = rng.uniform(80, 2000), rng.uniform(-200, 200), rng.uniform(1, 6)
        envelope = np.square(np.sin(np.pi * beat * t + rng.uniform(0, np.pi)))
        wave += 0.15 * envelope * np.sin(2 * np.pi * (low * t + glide * np.square(t) / 2))
    return np.clip(wave, -1, 1).astype(np.float32)


def features(folder: Path, model: PreTrainedModel, seed: int) -> torch.Tensor:
    """What the encoder reads for clip `seed`, without a batch axis, float32.

    From the folder's own feature extractor, cut or padded to what the model reads at once; without one that
    loads, noise of the shape the config asks for.
    """
    extractor = _extractor(folder)
    if extractor is None:
        return _noise(model, seed)
    rate = int(getattr(extractor, "sampling_rate", RATE))
    arguments: dict[str, Any] = {"sampling_rate": rate, "return_tensors": "pt"}
    frames, hop = _frames(model), getattr(extractor, "hop_length", None)
    if frames is not None and hop:
        # Whisper's encoder takes one length alone, whatever chunk its extractor was saved with.
        arguments |= {"max_length": frames * int(hop), "truncation": True, "padding": "max_length"}
    try:
        with quiet():
            read = extractor(clip(seed, rate), **arguments)
        return torch.as_tensor(read[model.main_input_name][0], dtype=torch.float32)
    except Exception as error:
        # Whatever an extractor raises, it does not belong to this model.
        raise BadInput(
            f"{folder} has a feature extractor that does not fit its model ({first_line(error)}); "
            "give a folder where they belong together"
        ) from error


def _extractor(folder: Path) -> Any:
    """The folder's feature extractor; None where it has none that loads without remote code."""
    try:
        with quiet():
            return AutoFeatureExtractor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception:  # noqa: BLE001 (a missing file or package, an unknown class; noise does)
        return None


def _frames(model: PreTrainedModel) -> int | None:
    """How many frames the encoder reads, where it takes one length alone (two make one of its positions)."""
    positions = getattr(model.config, "max_source_positions", None)
    return 2 * int(positions) if model.config.model_type == "whisper" and positions else None


def _noise(model: PreTrainedModel, seed: int) -> torch.Tensor:
    config = model.config
    if model.main_input_name == "input_values":
        return torch.from_numpy(clip(seed))
    bands = int(getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", 80)))
    frames = _frames(model) or min(2 * int(getattr(config, "max_source_positions", 250)), 500)
    noise = torch.randn((frames, bands), generator=torch.Generator().manual_seed(seed)) / 2
    return noise.T.contiguous() if _frames(model) else noise
