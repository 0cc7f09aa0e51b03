"""Train one small model of each wiring that slim attention is proved on, from scratch, in a minute or two.

    python -m models.corpus build/corpus/corpus.jsonl.gz
    python -m models.train_wirings build/corpus/corpus.jsonl.gz out/wirings

About 0.6 million weights each (1.3 MB in bfloat16), with the tokenizer of `models/tiny-llama`: GPT-2,
GPT-NeoX (partial RoPE, QKV fused by heads), OLMo-2 (normalised queries and keys), Phi-3 (QKV fused), T5
(relative positions, inner width twice the model's) and Whisper (on made-up speech, see `sounds`). The
decoders learn the next token; T5 mends windows of which three tokens in ten were replaced; Whisper writes
down what it hears. What was run is in each folder's `training.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, WhisperFeatureExtractor

from models.corpus import read
from models.evaluate import MODEL
from models.sounds import FRAMES, MELS, codebook, spoken
from models.train import COPIES, schedule, token_stream

WIDTH, LAYERS, HEADS, CONTEXT, PAIR = 96, 4, 4, 256, 64
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_TEXT = {"vocab_size": 2048, "max_position_embeddings": 512, "tie_word_embeddings": True, **_TOKENS}
_GATED = {
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    **_TEXT,
}
_PAIRED = {"decoder_start_token_id": 0, **_TOKENS, "vocab_size": 2048, "d_model": WIDTH}

WIRINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 512, **_TEXT},
    "gpt_neox": {**_GATED, "intermediate_size": 384, "rotary_pct": 0.5},
    "olmo2": _GATED,
    "phi3": {**_GATED, "original_max_position_embeddings": 512},
    "t5": {"d_kv": 48, "num_heads": HEADS, "num_layers": 2, "num_decoder_layers": 3, "d_ff": 256, **_PAIRED},
    "whisper": {
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 384,
        "decoder_ffn_dim": 384,
        "num_mel_bins": MELS,
        "max_source_positions": PAIR * FRAMES // 2,
        "max_target_positions": 128,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        **_PAIRED,
    },
}
"""Model type -> what its config says beside the defaults. No dropout anywhere: these models are small."""


def build(model_type: str) -> Any:
    """The model of a wiring, untrained."""
    config = AutoConfig.for_model(model_type, **WIRINGS[model_type])
    for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "dropout_rate", "attention_dropout"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    if model_type in ("t5", "whisper"):
        name = {"t5": "T5ForConditionalGeneration", "whisper": "WhisperForConditionalGeneration"}[model_type]
        return getattr(transformers, name)(config)
    return transformers.AutoModelForCausalLM.from_config(config)


def windows(stream: torch.Tensor, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random pieces of the stream [count, length]."""
    starts = torch.randint(len(stream) - length, (count, 1), generator=generator, device=stream.device)
    return stream[starts + torch.arange(length, device=stream.device)]


def batches(model_type: str, stream: torch.Tensor, batch: int, seed: int) -> Callable[[int], dict[str, Any]]:
    """step -> the model's arguments, `labels` among them."""
    generator = torch.Generator(stream.device).manual_seed(seed)
    book = codebook(2048).to(stream.device)

    def draw(step: int) -> dict[str, Any]:
        if model_type not in ("t5", "whisper"):
            ids = windows(stream, batch, CONTEXT, generator)
            return {"input_ids": ids, "labels": ids}
        ids = windows(stream, 2 * batch, PAIR, generator)
        if model_type == "whisper":
            return {"input_features": spoken(ids, book, seed=step), "labels": ids}
        return {"input_ids": damaged(ids, generator), "labels": ids}

    return draw


def damaged(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The windows with three tokens in ten replaced by random ones."""
    noise = torch.randint(2, 2048, ids.shape, generator=generator, device=ids.device)
    chosen = torch.rand(ids.shape, generator=generator, device=ids.device) < 0.3
    return torch.where(chosen, noise, ids)


def train(model: Any, draw: Callable[[int], dict[str, Any]], steps: int, rate: float) -> list[list[float]]:
    """Train in place; [step, mean loss since the last row] at ten points of the run."""
    flat = [p for p in model.parameters() if p.ndim == 1]
    deep = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": deep, "lr": rate, "weight_decay": 0.1}, {"params": flat, "lr": 5 * rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    losses: list[list[float]] = []
    since = 0.0
    every = max(1, steps // 10)
    for step in range(1, steps + 1):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = model(**draw(step), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        since += loss.detach()
        if step % every == 0:
            losses.append([step, round(float(since) / every, 4)])
            since = 0.0
            print(model.config.model_type, *losses[-1], flush=True)
    return losses


def save(model: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write the folder as a user of transformers would publish it."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="700KB")
    GenerationConfig(**_TOKENS, decoder_start_token_id=0).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, folder / name)
    if model.config.model_type == "whisper":
        WhisperFeatureExtractor(feature_size=MELS).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small models of models/wirings.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=sorted(WIRINGS))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    everything, digest = read(options.corpus)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)._tokenizer
    documents = [document for document in everything if document.kind in COPIES]
    stream = token_stream(tokenizer, documents, options.seed).to(device)
    for model_type in [options.only] if options.only else WIRINGS:
        torch.manual_seed(options.seed)
        model = build(model_type).to(device)
        began = time.perf_counter()
        losses = train(
            model, batches(model_type, stream, options.batch, options.seed), options.steps, options.lr
        )
        record = {
            "corpus": {"sha256": digest, "tokens": len(stream)},
            "settings": {k: v for k, v in vars(options).items() if k not in {"corpus", "out", "only"}},
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(time.perf_counter() - began, 1),
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "losses": losses,
        }
        save(model, options.out / model_type.replace("_", ""), record)


if __name__ == "__main__":
    main()
