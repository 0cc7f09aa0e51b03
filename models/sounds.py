"""Made-up speech: text as log-mel features that a small Whisper can learn to write down.

Each token is a fixed pattern of `FRAMES` frames drawn once from a seed; a "recording" is the patterns one
after the other, smoothed over time, with noise. It is no speech, but the encoder's states are those of a
network trained on structured input, which is what calibration and proof of cross attention need.
"""

from __future__ import annotations

import torch

MELS = 16
FRAMES = 4
"""Frames of each token (two encoder positions, after the encoder's stride of 2)."""


def codebook(vocabulary: int) -> torch.Tensor:
    """The pattern of every token [vocabulary, FRAMES, MELS], float32."""
    generator = torch.Generator().manual_seed(20)
    return torch.randn(vocabulary, FRAMES, MELS, generator=generator)


def spoken(tokens: torch.Tensor, book: torch.Tensor, noise: float = 0.3, seed: int = 0) -> torch.Tensor:
    """Features [batch, MELS, n·FRAMES] of the tokens [batch, n], as a Whisper encoder reads them."""
    sound = book[tokens].flatten(1, 2)  # [batch, frames, MELS]
    smooth = (sound + sound.roll(1, 1) * 0.5) / 1.2
    generator = torch.Generator(sound.device).manual_seed(seed)
    hiss = torch.randn(smooth.shape, generator=generator, device=sound.device)
    return (smooth + noise * hiss).transpose(1, 2)
