"""Models, prompts and interventions that every contender of a benchmark gets alike."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mappers.architectures import config_digest, discover
from mappers.loading import LoadedModel
from mappers.mapper_config import MapperConfig
from mappers.modules import build_mapper
from mappers.sites import Site
from server.interventions.catalog import ResolvedIntervention
from server.types import Apply

SHAPES: dict[str, dict[str, int]] = {
    "15M": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "125M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2560},
}
VOCAB = 32_000


def random_llama(shape: str) -> LoadedModel:
    """A Llama of random weights in float32, vocabulary 32000, tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=VOCAB, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=None
    )
    model: Any = LlamaForCausalLM(config)
    model.requires_grad_(False)
    model.eval()
    vocabulary = {f"t{i} ": i for i in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0 ")))
    return LoadedModel(model, tokenizer, discover(model), shape, config_digest(config))


def prompts(count: int, length: int) -> list[list[int]]:
    """Random token ids, the same on every call."""
    rng = random.Random(count)
    return [[rng.randrange(VOCAB) for _ in range(length)] for _ in range(count)]


def autoencoder_switch(width: int, layer: int) -> ResolvedIntervention:
    """A residual autoencoder of the paper's width (hidden = d), as a switch of strength 1."""
    mapper = build_mapper(MapperConfig(kind="autoencoder", d_source=width, d_target=width, residual=True))
    effects = {Site(layer): mapper.requires_grad_(False).eval()}
    return ResolvedIntervention("switch", "bench", "bench", tuple(effects), 1.0, Apply(), effects)


def vector(width: int, layer: int, seed: int) -> ResolvedIntervention:
    """A small random direction, distinct for each ``seed``."""
    v_D = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * 0.01
    effects = {Site(layer): v_D}
    return ResolvedIntervention("add", f"v{seed}", f"v{seed}", tuple(effects), 1.0, Apply(), effects)
