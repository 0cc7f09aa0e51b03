"""DeepSeek-V3 of transformers' own classes, without the norms inside its latent attention."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from tricks import families


class LatentConfig(DeepseekV3Config):
    model_type = "latent_deepseek"


class LatentForCausalLM(DeepseekV3ForCausalLM):
    config_class = LatentConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.kv_a_layernorm = nn.Identity()
            if config.q_lora_rank is not None:
                layer.self_attn.q_a_layernorm = nn.Identity()


# Under pytest, transformers can be two modules; this is the one that is asked.
families.transformers.LatentForCausalLM = LatentForCausalLM  # type: ignore[attr-defined]
AutoConfig.register(LatentConfig.model_type, LatentConfig, exist_ok=True)
AutoModelForCausalLM.register(LatentConfig, LatentForCausalLM, exist_ok=True)
families.TABLES["AutoModelForCausalLM"][LatentConfig.model_type] = (LatentForCausalLM.__name__,)
