"""A class that transformers itself cannot save and load again is refused for that, not for a failed proof."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Gemma3ForConditionalGeneration

from tricks import BadInput, make_plan, parse_trick, read_checkpoint

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 99,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def test_shieldgemma_as_a_language_model_is_refused_with_the_true_reason(tmp_path: Path) -> None:
    config = AutoConfig.for_model("shieldgemma2", text_config=TEXT, vision_config=VISION)
    Gemma3ForConditionalGeneration._from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"could not be proven .transformers does not read .* back") as error:
        make_plan(read_checkpoint(tmp_path), [parse_trick("flashnorm")])
    assert "\n" not in str(error.value)
