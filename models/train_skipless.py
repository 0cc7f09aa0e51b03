"""Train the small skipless transformer of `models/tiny-skipless` on a CPU, with the tokenizer of tiny-llama.

    python -m models.corpus build/corpus/corpus.jsonl.gz
    python -m models.train_skipless build/corpus/corpus.jsonl.gz models/tiny-skipless

Three serial blocks without skips and norms: grouped-query attention with RoPE, SwiGLU, biases. It learns
slowly, as such models do; it is here so that merging its matrices is tried on trained ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from models.corpus import read
from models.evaluate import HELDOUT, MODEL
from models.train import schedule, token_stream
from tricks.shipped.modeling_skipless import SkiplessConfig, SkiplessForCausalLM

CONTEXT = 64
CONFIG = SkiplessConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bias=True,
    bos_token_id=0,
    eos_token_id=1,
)


def batch_of(stream: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(stream) - CONTEXT, (size, 1), generator=generator)
    return stream[starts + torch.arange(CONTEXT)]


def loss_on(model: SkiplessForCausalLM, tokens: torch.Tensor) -> float:
    """Mean loss in nats per token over whole windows of the text."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with torch.no_grad():
        losses = [model(input_ids=rows, labels=rows).loss.item() for rows in windows.split(16)]
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small skipless transformer.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    documents = [one for one in read(options.corpus)[0] if one.kind in ("topic", "english")]
    stream = token_stream(tokenizer.backend_tokenizer, documents, 0)
    heldout = torch.tensor(
        tokenizer(HELDOUT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    )
    model = SkiplessForCausalLM(CONFIG)
    before = loss_on(model.eval(), heldout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    began, recent = time.perf_counter(), 0.0
    model.train()
    for step in range(options.steps):
        spent = (time.perf_counter() - began) / 60 / options.minutes
        if spent >= 1:
            break
        # The schedule follows whichever of steps and minutes runs out first.
        share = max(step / options.steps, spent)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * schedule(int(share * 1000), 1000)
        rows = batch_of(stream, options.batch, generator)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step}: loss {recent:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    after = loss_on(model.eval(), heldout)
    SkiplessForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    SkiplessConfig.register_for_auto_class()
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    figures = {
        "steps": step,
        "seconds": round(time.perf_counter() - began),
        "heldout loss before, nats per token": round(before, 3),
        "heldout loss, nats per token": round(after, 3),
        "parameters": model.num_parameters(),
    }
    (options.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
