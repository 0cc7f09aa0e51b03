"""Sound for speech models: clips made by rule, so that no recording has to travel with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, PreTrainedModel

from evals.models import quiet

RATE = 16_000  # samples a second
SECONDS = 5


def clip(seed: int) -> np.ndarray:
    """Five seconds of gliding tones with some noise, `(samples,)` float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(SECONDS * RATE) / RATE
    wave = 0.02 * rng.standard_normal(len(t))
    for _ in range(6):
        low, glide, beat = rng.uniform(80, 2000), rng.uniform(-200, 200), rng.uniform(1, 6)
        envelope = np.square(np.sin(np.pi * beat * t + rng.uniform(0, np.pi)))
        wave += 0.15 * envelope * np.sin(2 * np.pi * (low * t + glide * np.square(t) / 2))
    return np.clip(wave, -1, 1).astype(np.float32)


def features(folder: Path, model: PreTrainedModel, seed: int) -> torch.Tensor:
    """What the encoder reads for clip `seed`, without a batch axis, float32.

    From the folder's own feature extractor; without one that loads, noise of the shape the config asks for.
    """
    try:
        with quiet():
            extractor: Any = AutoFeatureExtractor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        read = extractor(clip(seed), sampling_rate=RATE, return_tensors="pt")
        return torch.as_tensor(read[model.main_input_name][0], dtype=torch.float32)
    except Exception:  # noqa: BLE001 (no extractor, or one that wants what is not there)
        config = model.config
        generator = torch.Generator().manual_seed(seed)
        if model.main_input_name == "input_values":
            return torch.from_numpy(clip(seed))
        frames = 2 * int(getattr(config, "max_source_positions", 1500))
        bands = int(getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", 80)))
        noise = torch.randn((bands, frames), generator=generator)
        return noise / 2 if model.config.model_type == "whisper" else noise.T / 2
