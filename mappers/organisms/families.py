"""The architectures: a configuration and a freshly initialised model for each family and size."""

from typing import Any, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from mappers.organisms.catalogue import Family, Organism, Size

CONTEXT: Final = 512
"""Longest sequence in tokens that the position embeddings are declared for."""

_HEADS: Final = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SHAPES: Final[dict[Size, dict[str, int]]] = {
    "small": {"num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 288, "head_dim": 24},
    "medium": {"num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 320, "head_dim": 32},
}
# What makes Gemma 2 itself, at this scale: both soft caps, and every other layer with a sliding window.
_GEMMA2: Final = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 64,
}
_CONFIGS: Final[dict[Family, type[PreTrainedConfig]]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "gemma2": Gemma2Config,
}


def model_config(organism: Organism, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The transformers configuration of an organism whose vocabulary is the tokenizer's."""
    shape: dict[str, Any] = dict(_SHAPES[organism.size])
    if organism.family == "gemma2":
        shape |= _GEMMA2 | {"query_pre_attn_scalar": shape["head_dim"]}
    return _CONFIGS[organism.family](
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=_bos_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_HEADS,
        **shape,
    )


def new_model(organism: Organism, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A float32 model with random weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model_config(organism, tokenizer), dtype=torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=_bos_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    # Qwen2 puts nothing before a text; like the original, its configuration then names the padding token.
    return int(tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
