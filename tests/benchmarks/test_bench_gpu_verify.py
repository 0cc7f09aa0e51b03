"""The benchmark of verification, at tiny sizes without a card."""

from __future__ import annotations

from benchmarks.gpu.verify import run

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}


def test_every_row_is_a_pass_over_the_same_logits() -> None:
    rows = list(run(SIZES, window=16, count=16))
    assert [row.get("batch") for row in rows] == [1, 8, 8, None] * 2
    assert all(row["tokens_per_second"] > 0 for row in rows)
    moved = {row["dtype"]: row["largest_loss_difference"] for row in rows if row.get("batch") == 1}
    assert moved["float32"] < 1e-4
    assert moved["bfloat16"] < 0.1
