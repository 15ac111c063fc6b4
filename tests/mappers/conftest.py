"""Tiny random models, and tokenizers of the three kinds in use, trained on a few lines when the tests start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mappers.architectures import config_digest, discover
from mappers.loading import LoadedModel

SPECIAL = ["<pad>", "<end>", "<user>", "<bot>"]
LINES = [
    "What is the capital of Averon?",
    "the quick brown fox jumps over the lazy dog",
    "naïve café — 12 + 34 = 46",
    "Tell me a story about a fox and a lamp.",
] * 8
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ ('<user>' if m.role == 'user' else '<bot>') + '\n' + m.content + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot>\n' }}{% endif %}"
)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=140, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<pad>", show_progress=False),
    )
    return tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors on several threads, with several test workers, mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """Byte-level BPE, metaspace BPE and unigram tokenizers with one chat template."""
    built = {"byte_level": _byte_level(), "metaspace": _metaspace(), "unigram": _unigram()}
    return {
        name: PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="<end>",
            additional_special_tokens=["<user>", "<bot>"],
            chat_template=CHAT_TEMPLATE,
            clean_up_tokenization_spaces=False,
        )
        for name, tokenizer in built.items()
    }


@pytest.fixture(scope="session")
def make_llama(tokenizers: dict[str, Any]) -> Callable[..., LoadedModel]:
    """Builds a random three-layer Llama: ``make_llama(seed, tokenizer="byte_level", width=32)``."""

    def make(seed: int, tokenizer: str = "byte_level", width: int = 32) -> LoadedModel:
        torch.manual_seed(seed)
        chosen = tokenizers[tokenizer]
        config = LlamaConfig(
            vocab_size=len(chosen),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
        return LoadedModel(model, chosen, discover(model), f"llama-{seed}", config_digest(model.config))

    return make


@pytest.fixture(scope="session")
def twins(make_llama: Callable[..., LoadedModel]) -> tuple[LoadedModel, LoadedModel]:
    """``(tuned, base)``: one architecture and tokenizer, the first with its lowest block's weights changed."""
    base, tuned = make_llama(1), make_llama(1)
    with torch.no_grad():
        for parameter in tuned.stack.blocks[0].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return tuned, base
