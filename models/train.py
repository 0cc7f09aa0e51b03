"""Train the small Llama of `models/tiny-llama` from scratch: tokenizer, weights, figures.

    python -m models.corpus build/corpus/corpus.jsonl.gz
    python -m models.train build/corpus/corpus.jsonl.gz out/tiny-llama --compile
    python -m models.evaluate out/tiny-llama --record

A byte-level BPE of 2,048 tokens and a Llama with RoPE, multi-head attention, RMSNorm, SwiGLU and an untied
head, kept in float32 while training (bfloat16 autocast on a GPU) and saved in bfloat16 in three shards. Norm
gains have no weight decay and a larger step than the matrices: their values should carry information, so that
moving them is a real test.

The settings were chosen by the validation topics out of three runs. 1,500 steps (nine passes over the corpus)
leave a perplexity of 25 on them; 4,000 steps overfit the small corpus and leave 292, or 113 with
`--weight-decay 0.5 --lr 3e-3`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.corpus import Document, read
from models.evaluate import CONTEXT, HELDOUT, perplexity

START, END = "<s>", "</s>"
VOCABULARY = 2048
COPIES = {"topic": 2, "english": 2, "source": 1}  # the held-out text is documentation, not code
SHARD_SIZE = "2500KB"


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    """A byte-level BPE learned from the English documents (the sources hold the same words once more)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    english = (document.text for document in documents if document.kind != "source")
    tokenizer.train_from_iterator(english, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{START} $A", pair=f"{START} $A {START}:1 $B:1", special_tokens=[(START, 0)]
            ),
        ]
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[Document], seed: int) -> torch.Tensor:
    """All documents in a shuffled order, each between its start and end token: (n,) int64."""
    copies = [document.text for document in documents for _ in range(COPIES[document.kind])]
    random.Random(seed).shuffle(copies)
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(copies, add_special_tokens=False):
        stream += [0, *encoding.ids, 1]
    return torch.tensor(stream)


def make_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )


def make_optimizer(model: LlamaForCausalLM, options: argparse.Namespace) -> torch.optim.AdamW:
    gains = [weight for weight in model.parameters() if weight.ndim == 1]
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    groups = [
        {"params": matrices, "lr": options.lr, "weight_decay": options.weight_decay},
        {"params": gains, "lr": options.gain_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=torch.cuda.is_available())


def schedule(step: int, steps: int) -> float:
    """The share of the full step size: a linear warm-up over 2 %, then a cosine down to a twentieth."""
    warm_up = max(1, steps // 50)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def draw_batch(
    stream: torch.Tensor, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, (batch, CONTEXT) each, from random places; half begin with the start token."""
    starts = torch.randint(len(stream) - CONTEXT - 1, (batch, 1), generator=generator, device=stream.device)
    windows = stream[starts + torch.arange(CONTEXT + 1, device=stream.device)]  # (batch, CONTEXT + 1)
    windows[: batch // 2, 0] = 0
    return windows[:, :-1], windows[:, 1:]


def train(model: LlamaForCausalLM, stream: torch.Tensor, options: argparse.Namespace) -> list[list[float]]:
    """Train in place; [step, mean loss since the last row] at twenty points of the run."""
    optimizer = make_optimizer(model, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, options.steps))
    run: Any = torch.compile(model) if options.compile else model
    generator = torch.Generator(device=stream.device).manual_seed(options.seed)
    every = max(1, options.steps // 20)
    losses: list[list[float]] = []
    since = torch.zeros((), device=stream.device)
    began = time.perf_counter()
    for step in range(1, options.steps + 1):
        inputs, targets = draw_batch(stream, options.batch, generator)
        with torch.autocast(stream.device.type, torch.bfloat16, enabled=stream.is_cuda):
            logits = run(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        since += loss.detach()
        if step % every == 0:
            losses.append([step, round(since.item() / every, 4)])
            since.zero_()
            print(f"step {step}: loss {losses[-1][1]}, {time.perf_counter() - began:.1f} s", flush=True)
    return losses


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder as a user of transformers would publish it, whatever version wrote or reads it."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    GenerationConfig(bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    # transformers 5 writes its new name of the class, which version 4 does not know; both read the old one.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def figures_of(gains: list[torch.Tensor]) -> dict[str, float]:
    """How far the norm gains are from one, over all of them."""
    values = torch.cat([gain.detach().float().cpu() for gain in gains])
    return {"min": values.min().item(), "max": values.max().item(), "std": values.std().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small Llama of models/tiny-llama.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--gain-lr", type=float, default=1e-2)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    everything, digest = read(options.corpus)
    documents = [document for document in everything if document.kind in COPIES]
    tokenizer = train_tokenizer(documents)
    stream = token_stream(tokenizer, documents, options.seed).to(device)
    texts = {
        "validation": next(document.text for document in everything if document.kind == "validation"),
        "heldout": HELDOUT.read_text(encoding="utf-8"),
    }
    tokens = {
        name: torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
        for name, text in texts.items()
    }
    model: Any = LlamaForCausalLM(make_config())
    model.to(device)
    before = {name: perplexity(model, ids, 0) for name, ids in tokens.items()}
    began = time.perf_counter()
    losses = train(model, stream, options)
    seconds = time.perf_counter() - began
    model.eval()
    after = {name: perplexity(model, ids, 0) for name, ids in tokens.items()}
    gains = figures_of([weight for weight in model.parameters() if weight.ndim == 1])
    save(model, tokenizer, options.out)
    after_rounding = {name: perplexity(model, ids, 0) for name, ids in tokens.items()}
    record = {
        "corpus": {"sha256": digest, "tokens": len(stream), "copies": COPIES},
        "settings": {name: value for name, value in vars(options).items() if name not in {"corpus", "out"}},
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens seen": options.steps * options.batch * CONTEXT,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "losses": losses,
        "norm gains": gains,
        "perplexity while training": {
            "untrained float32": before,
            "trained float32": after,
            "trained bfloat16": after_rounding,
        },
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["perplexity while training"], indent=2))
    print(json.dumps({"gains": gains, "tokens": len(stream), "seconds": seconds}))


if __name__ == "__main__":
    main()
