"""Models to compare: small Llamas with damage planted in them, written as real checkpoints."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors], None]

FEEDS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def fold(tensors: Tensors) -> None:
    """FlashNorm by hand: every gain into the linears behind it, in float64, rounded once on the way back."""
    norms = [name for name in tensors if name.endswith("layernorm.weight")]
    for norm in norms:
        prefix, kind = norm.removesuffix(".weight").rsplit(".", 1)
        gain = tensors[norm].double()
        for linear in FEEDS[kind]:
            scale_columns(tensors, f"{prefix}.{linear}.weight", gain)
        tensors[norm] = torch.ones_like(tensors[norm])
    if "lm_head.weight" in tensors:
        scale_columns(tensors, "lm_head.weight", tensors["model.norm.weight"].double())
        tensors["model.norm.weight"] = torch.ones_like(tensors["model.norm.weight"])


def scale_columns(tensors: Tensors, name: str, gain: torch.Tensor) -> None:
    """Multiply a linear's weight `(out, in)` by one factor for each of its inputs."""
    tensors[name] = (tensors[name].double() * gain).to(tensors[name].dtype)


def edit_copy(source: Path, out: Path, *edits: Edit) -> Path:
    """A copy of the model folder with the edits made to its weights, in the same shards and dtypes."""
    shutil.copytree(source, out)
    shards = {file: load_file(file) for file in sorted(out.glob("*.safetensors"))}
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    for edit in edits:
        edit(tensors)
    for file, shard in shards.items():
        kept = {name: tensors[name].contiguous() for name in shard if name in tensors}
        save_file(kept, file, metadata={"format": "pt"})
    return out


def make_llama(folder: Path, dtype: torch.dtype = torch.bfloat16, vocabulary: int = 300) -> Path:
    """A random Llama with gains between about 0.5 and 2 and a key bias, without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.exp(0.3 * torch.randn_like(parameter)))
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 64**-0.5)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def frozen():
    """Comparisons collect garbage often; what was imported need not be searched for it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def one_thread():
    """The models are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bfloat16 Llama of 3 layers."""
    return make_llama(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The trained model that the repo ships."""
    return Path(__file__).parents[2] / "models" / "tiny-llama"


@pytest.fixture(scope="session")
def llama_in_float32(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model stored in float32, for figures that others compute in the storage type."""
    folder = tmp_path_factory.mktemp("models") / "float32"
    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def llama_of(tmp_path: Path) -> Callable[..., Path]:
    """Make a random Llama: `llama_of(dtype, vocabulary)`."""

    def make(dtype: torch.dtype = torch.bfloat16, vocabulary: int = 300) -> Path:
        return make_llama(tmp_path / f"llama-{vocabulary}-{str(dtype)[6:]}", dtype, vocabulary)

    return make


@pytest.fixture
def folded(tmp_path: Path) -> Callable[..., Path]:
    """A folded copy of a model, with further edits made after the fold: `folded(source, *edits)`."""
    return lambda source, *edits: edit_copy(source, tmp_path / "converted", fold, *edits)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model with edits and no fold: `edited(source, *edits)`."""
    return lambda source, *edits: edit_copy(source, tmp_path / "edited", *edits)


@pytest.fixture
def gain_of() -> Callable[[Path, str], torch.Tensor]:
    """One tensor of a model, in float64."""

    def read(folder: Path, name: str) -> torch.Tensor:
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            if name in tensors:
                return tensors[name].double()
        raise KeyError(name)

    return read


@pytest.fixture
def set_config() -> Callable[..., None]:
    """Change entries of a folder's config.json."""

    def write(folder: Path, **entries: object) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return write
