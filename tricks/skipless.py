"""Skipless: two d x d matrices of each block multiplied into their neighbours.

Source: Graef and Wasielewski, "Transformer tricks: Removing weights for skipless transformers"
(arXiv:2404.12362), table 1 and figures 1 to 3; biases, mixtures of experts and the exact half for parallel
blocks are derived here. It needs a transformer without skips and without norms, which both stand between the
matrices; every other model is told which of them stand where.
"""

from __future__ import annotations

from typing import Any

from tricks import absorb  # noqa: F401 - registers its operations
from tricks.afterwards import afterwards
from tricks.checkpoint import WIDTHS
from tricks.edits import Drop, Edit, Make, New
from tricks.errors import BadInput
from tricks.obstacles import obstacles
from tricks.place import Place
from tricks.recipe import Trick
from tricks.shipped.modeling_skipless import SkiplessConfig, SkiplessForCausalLM
from tricks.subject import Draft, Subject

NAME = "skipless"


class _Unfit(Exception):
    """Why the matrices cannot be merged."""


def plan_skipless(subject: Subject, trick: Trick) -> Draft:
    """Plan the merge for a skipless model; for any other say what stands in the way.

    `absorb` names the projection that goes: q works for any attention, k and v where every head has its own.
    """
    if not isinstance(subject.model, SkiplessForCausalLM):
        return Draft([Place(NAME, where, False, reason) for where, reason in obstacles(subject)])
    try:
        return _merge(subject, trick.option("absorb"))
    except _Unfit as reason:
        return Draft([Place(NAME, "layers", False, str(reason))])


# --- merging -----------------------------------------------------------------------------------------


class _Merge:
    """The edits of one model, gathered block by block."""

    def __init__(self, subject: Subject, absorbed: str) -> None:
        self.tensors = subject.checkpoint.tensors
        self.absorbed = absorbed
        self.edits: list[Edit] = []
        self.gone: list[str] = []

    def make(self, operation: str, linear: str, basis: str, shift: bool = True) -> None:
        """Replace the linear layer `linear` by what `operation` makes of it with the matrix of `basis`."""
        inputs = {"weight": f"{linear}.weight", "basis": f"{basis}.weight"}
        outputs = {"weight": self._same(f"{linear}.weight")}
        if f"{linear}.bias" in self.tensors:
            inputs["bias"] = f"{linear}.bias"
            outputs["bias"] = self._same(f"{linear}.bias")
        if shift and f"{basis}.bias" in self.tensors:
            inputs["shift"] = f"{basis}.bias"
        self.edits.append(Make(operation, inputs, outputs))

    def _same(self, name: str) -> New:
        info = self.tensors[name]
        return New(name, info.dtype, info.shape)

    def drop(self, linear: str) -> None:
        self.gone += [name for name in (f"{linear}.weight", f"{linear}.bias") if name in self.tensors]


def _merge(subject: Subject, absorbed: str) -> Draft:
    config = subject.config
    assert isinstance(config, SkiplessConfig)
    _check(subject, config, absorbed)
    merge = _Merge(subject, absorbed)
    blocks = range(config.num_hidden_layers)
    basis = [f"layers.{n}.attention.{absorbed}_proj" for n in blocks]
    if config.tie_word_embeddings:
        # The output layer keeps the embedding as it was.
        info = subject.checkpoint.tensors["embed_tokens.weight"]
        head = New("lm_head.weight", info.dtype, info.shape)
        merge.edits.append(Make("precompute.copy", {"value": info.name}, {"copy": head}))
    merge.make("absorb.embedding", "embed_tokens", basis[0])
    for n in blocks:
        stem = f"layers.{n}."
        for name in ("q", "k", "v"):
            if name != absorbed:
                merge.make("absorb.undo", f"{stem}attention.{name}_proj", basis[n])
        entries, exits = _feed_forward(config, stem)
        for linear in entries:
            if config.parallel:
                merge.make("absorb.undo", linear, basis[n])
            else:
                merge.make("absorb.through", linear, f"{stem}attention.o_proj")
        if n + 1 < len(blocks):
            for linear in exits:
                merge.make("absorb.after", linear, basis[n + 1])
            if config.parallel:
                # Both summands are multiplied; the bias comes once, with the feed-forward.
                merge.make("absorb.after", f"{stem}attention.o_proj", basis[n + 1], shift=False)
        merge.drop(basis[n])
        if not config.parallel:
            merge.drop(f"{stem}attention.o_proj")
    merge.edits += [Drop(name) for name in merge.gone]
    tensors = subject.checkpoint.tensors
    saved = sum(tensors[name].end - tensors[name].begin for name in merge.gone)
    if config.tie_word_embeddings:
        info = tensors["embed_tokens.weight"]
        saved -= WIDTHS[info.dtype] * info.shape[0] * info.shape[1]
    what = f"{absorbed} multiplied into its neighbours"
    what += " (the sum of two branches leaves no freedom for P)" if config.parallel else ", and P with it"
    fields: dict[str, Any] = {"absorbed": absorbed, "tie_word_embeddings": False}
    return Draft(
        places=[Place(NAME, f"layers.{n}.attention", True, what) for n in blocks],
        edits=merge.edits,
        savings={"weight_bytes_saved": saved},
        config={**fields, "tricksmith": {NAME: {"absorbed": absorbed}}},
        leaves=afterwards(subject, merge.edits, fields),
    )


def _check(subject: Subject, config: SkiplessConfig, absorbed: str) -> None:
    if config.absorbed is not None:
        raise _Unfit(f"{config.absorbed} is merged away already")
    if absorbed != "q" and config.num_key_value_heads != config.num_attention_heads:
        raise _Unfit(
            f"{absorbed} is not square: {config.num_attention_heads} query heads share "
            f"{config.num_key_value_heads} key-value heads; choose absorb=q"
        )
    taken = [subject.claimed(f"layers.0.attention.{name}_proj") for name in ("q", "k", "v")]
    if any(taken):
        raise _Unfit(f"its first block belongs to {next(filter(None, taken))}")
    for name, parameter in subject.model.named_parameters():
        found = subject.checkpoint.tensors.get(name)
        if found is None or found.shape != tuple(parameter.shape):
            raise BadInput(
                f"{subject.checkpoint.name}: {name} is not in the checkpoint in the shape that config.json "
                "says; config.json and the weights belong to different models"
            )


def _feed_forward(config: SkiplessConfig, stem: str) -> tuple[list[str], list[str]]:
    """The linear layers that read a feed-forward's input, and those that write its output."""
    stem += "feed_forward."
    inner = [f"{stem}experts.{n}." for n in range(config.num_experts)] or [stem]
    entries = [
        one + name for one in inner for name in (("gate_proj", "up_proj") if config.glu else ("up_proj",))
    ]
    if config.num_experts:
        entries.append(f"{stem}router")
    return entries, [f"{one}down_proj" for one in inner]
