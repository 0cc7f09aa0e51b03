"""Models that are refused before anything is built, each in one line."""

from __future__ import annotations

from typing import Any

import pytest

from tricks import BadInput
from tricks.model import read_config

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama", "tricksmith": {}}, "convert its source"),
    ({"model_type": "bert-of-mine", "auto_map": {"AutoModel": "x.Y"}}, "its own remote code"),
    ({"model_type": "vit"}, "no language model"),
    ({}, "no language model"),
    ({"model_type": "llama", "architectures": ["ViTModel"]}, r"is a ViTModel.*for this architecture: Llama"),
    ({"model_type": "whisper", "architectures": ["WhisperForAudioClassification"]}, "is a WhisperForAudio"),
    ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
    ({"model_type": "llama", "hidden_size": "wide"}, "config.json is not valid"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_refused_with_a_reason(config: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        read_config(config, "org/model")
    assert "\n" not in str(caught.value)
