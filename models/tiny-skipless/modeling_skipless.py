"""A transformer without skip connections and without norms, whole or with two matrices per block merged away.

    block:  x [B, T, d] -> q, k, v -> attention -> P -> feed-forward -> next block's x

As nothing stands between the matrices, a block's Q and P (or K and P, V and P where heads are not shared) can
be multiplied into their neighbours: `config.absorbed` names what is gone. In a parallel block (attention and
feed-forward read the same x and are added) only Q, K or V can go, P stays.

Without skips and norms a signal lives by its initialisation: matrices start orthogonal, and attention is
"shaped" to near the identity, alpha·I + beta·A - gamma·C, with C the plain mean over the past.

Sources: Graef and Wasielewski, "Transformer tricks: Removing weights for skipless transformers"
(arXiv:2404.12362); He and Hofmann, "Simplifying transformer blocks" (arXiv:2311.01906) for the shaped
attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class SkiplessConfig(PretrainedConfig):
    """Sizes and switches of a skipless transformer.

    `absorbed`: None for the whole model, else "q", "k" or "v", the projection that was merged away (with P in
    serial blocks). `num_experts`: 0 for one feed-forward per block. `glu`: gate and up projections. `bias`:
    on every linear layer but the output layer.

    Raises:
        ValueError: the heads do not divide their channels, or each other, or cannot be rotated in pairs.
    """

    model_type = "skipless"

    def __init__(
        self,
        vocab_size: int = 2048,
        hidden_size: int = 128,
        intermediate_size: int = 256,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        max_position_embeddings: int = 512,
        hidden_act: str = "silu",
        glu: bool = True,
        bias: bool = False,
        parallel: bool = False,
        shaped: bool = True,
        rope: bool = True,
        rope_base: float = 10000.0,
        num_experts: int = 0,
        num_experts_per_tok: int = 2,
        absorbed: str | None = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.glu = glu
        self.bias = bias
        self.parallel = parallel
        self.shaped = shaped
        self.rope = rope
        self.rope_base = rope_base
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.absorbed = absorbed
        if hidden_size % num_attention_heads or num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"{num_attention_heads} query heads of {num_key_value_heads} key-value heads do not divide "
                f"{hidden_size} channels and each other"
            )
        if rope and hidden_size // num_attention_heads % 2:
            raise ValueError(
                f"a head of {hidden_size // num_attention_heads} channels cannot be rotated in pairs; choose "
                "another number of heads, or rope=false"
            )
        if num_experts and not 0 < num_experts_per_tok <= num_experts:
            raise ValueError(f"{num_experts_per_tok} of {num_experts} experts cannot be chosen")
        super().__init__(**{**kwargs, "tie_word_embeddings": tie_word_embeddings})


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """RoPE of x [B, H, T, dh] at positions [B, T]."""
    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (positions[:, None, :, None].float() * speeds).to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class SkiplessAttention(nn.Module):
    def __init__(self, config: SkiplessConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, heads, shared = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = d // heads
        sizes = {"q": d, "k": shared * self.head_dim, "v": shared * self.head_dim}
        for name, size in sizes.items():
            if name != config.absorbed:
                setattr(self, f"{name}_proj", nn.Linear(d, size, bias=config.bias))
        if config.absorbed is None or config.parallel:
            self.o_proj = nn.Linear(d, d, bias=config.bias)
        if config.shaped:
            # The mix of the identity, attention and the mean, per head; it starts as the identity.
            self.shape_gains = nn.Parameter(torch.ones(3, heads))

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None
    ) -> torch.Tensor:
        """x [B, T, d], positions [B, T], mask [B, 1, T, S] (true where to look) -> [B, T, d]."""
        batch, length, _ = x.shape
        parts = {}
        for name in ("q", "k", "v"):
            projection = getattr(self, f"{name}_proj", None)
            y = x if projection is None else projection(x)
            parts[name] = y.view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = parts["q"], parts["k"], parts["v"]
        if self.config.rope:
            q = rotate(q, positions, self.config.rope_base)
            k = rotate(k, positions, self.config.rope_base)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        if self.config.shaped:
            alpha, beta, gamma = self.shape_gains.view(3, 1, -1, 1, 1).unbind(0)
            seen = mask.to(weights.dtype)
            mean = seen / seen.sum(-1, keepdim=True)
            at = torch.arange(k.shape[2] - length, k.shape[2], device=x.device)
            self_weight = nn.functional.one_hot(at, k.shape[2]).to(weights.dtype)
            weights = alpha * self_weight + beta * weights - gamma * mean
        y = (weights @ v).transpose(1, 2).reshape(batch, length, -1)
        if hasattr(self, "o_proj"):
            y = self.o_proj(y)
        return y  # type: ignore[no-any-return]


class SkiplessFeedForward(nn.Module):
    def __init__(self, config: SkiplessConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, f, bias=config.bias) if config.glu else None
        self.up_proj = nn.Linear(d, f, bias=config.bias)
        self.down_proj = nn.Linear(f, d, bias=config.bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        hidden = self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up
        y: torch.Tensor = self.down_proj(hidden)
        return y


class SkiplessExperts(nn.Module):
    """A mixture: the chosen experts' outputs, weighted so that the weights add up to one."""

    def __init__(self, config: SkiplessConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=config.bias)
        self.experts = nn.ModuleList(SkiplessFeedForward(config) for _ in range(config.num_experts))
        self.chosen = config.num_experts_per_tok

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best, index = self.router(x).topk(self.chosen, -1)
        weights = torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], len(self.experts))
        weights = weights.scatter(-1, index, best.softmax(-1))
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights.unsqueeze(-2)).sum(-1)


class SkiplessBlock(nn.Module):
    def __init__(self, config: SkiplessConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.attention = SkiplessAttention(config, layer)
        self.feed_forward = SkiplessExperts(config) if config.num_experts else SkiplessFeedForward(config)

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        mixed: torch.Tensor = self.attention(x, *args)
        y: torch.Tensor = mixed + self.feed_forward(x) if self.parallel else self.feed_forward(mixed)
        return y


class SkiplessForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = SkiplessConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012 - as transformers has it
    _no_split_modules = ["SkiplessBlock"]  # noqa: RUF012

    def __init__(self, config: SkiplessConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SkiplessBlock(config, n) for n in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Orthogonal matrices and unit embeddings: the signal keeps its size through all blocks."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, SkiplessAttention) and self.config.shaped:
            nn.init.ones_(module.shape_gains)
        if isinstance(module, SkiplessFeedForward) and module.gate_proj is not None and self.config.bias:
            nn.init.normal_(module.gate_proj.weight, std=0.02)
            nn.init.ones_(module.gate_proj.bias)  # so that the gate starts open

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        x = inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        batch, length, _ = x.shape
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        columns = torch.arange(past + length, device=x.device)
        mask = columns[None, None, None, :] <= columns[None, None, past:, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].bool()
            mask = mask | (columns[None, None, None, :] == columns[None, None, past:, None])
        if position_ids is None:
            position_ids = columns[past:].expand(batch, -1)
        for block in self.layers:
            x = block(x, position_ids, mask, past_key_values)
        kept = x[:, -logits_to_keep:] if logits_to_keep else x
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
