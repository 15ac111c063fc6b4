"""The models that every contender gets: Llamas of random weights, written once, and small trained ones by path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128},
    "15M": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "125M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2560},
}
VOCAB = {"tiny": 512}
FULL_VOCAB = 32_000
CONTEXT = 2048


@dataclass(frozen=True)
class Model:
    """A folder in the format of transformers, and of its configuration what workloads and limits depend on."""

    name: str
    path: str
    layers: int
    width: int
    vocab: int
    kv_width: int
    context: int

    @property
    def middle(self) -> int:
        """The block at half of the depth."""
        return self.layers // 2

    def kv_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of keys and values of so many tokens."""
        return 2 * self.layers * self.kv_width * itemsize * tokens


def model_at(folder: Path) -> Model:
    """Describes a Llama or Qwen2 folder by its ``config.json``."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    return Model(
        folder.name,
        str(folder),
        config["num_hidden_layers"],
        config["hidden_size"],
        config["vocab_size"],
        (config.get("num_key_value_heads") or heads) * head_width,
        config["max_position_embeddings"],
    )


def random_llama(shape: str, cache: Path) -> Model:
    """A float32 Llama with tied embeddings and the weights of seed 0, made in ``cache`` unless it is there."""
    folder = cache / "models" / shape
    if not (folder / "config.json").exists():
        _write(shape, folder)
    return model_at(folder)


def parameters(model: Model) -> int:
    """Weights of a model, counted in the headers of its files (tied ones once)."""
    total = 0
    for file in Path(model.path).glob("*.safetensors"):
        with file.open("rb") as data:
            header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        total += sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def _write(shape: str, folder: Path) -> None:
    import torch  # the process that only leads the workers needs it once in a checkout's life
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocab = VOCAB.get(shape, FULL_VOCAB)
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=vocab,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    words: Any = models.WordLevel({f"t{i} ": i for i in range(vocab)}, unk_token="t0 ")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    model: Any = LlamaForCausalLM(config)
    # config.json is what says that a folder is complete: written last.
    model.save_pretrained(folder)
