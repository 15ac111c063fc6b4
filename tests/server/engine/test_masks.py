"""Masks against the rule, column by column."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from server.engine.masks import AttentionMasks

POSITIONS = torch.tensor([[0, 1, 2], [7, 8, 9]])
HIDDEN = torch.finfo(torch.float32).min


def expected(window: int | None) -> torch.Tensor:
    mask = torch.full((2, 1, 3, 10), HIDDEN)
    for b, row in enumerate(POSITIONS.tolist()):
        for q, position in enumerate(row):
            for column in range(10):
                if column <= position and (window is None or position - column < window):
                    mask[b, 0, q, column] = 0.0
    return mask


@pytest.mark.parametrize(("config", "window"), [(LlamaConfig(), None), (MistralConfig(sliding_window=4), 4)])
def test_one_kind_of_attention_is_one_mask(config, window):
    assert torch.equal(AttentionMasks(config, torch.float32).build(POSITIONS, 10), expected(window))


def test_several_kinds_are_a_mask_each():
    kinds = ["full_attention", "sliding_attention"]
    config = Qwen2Config(use_sliding_window=True, sliding_window=3, num_hidden_layers=2, layer_types=kinds)
    masks = AttentionMasks(config, torch.float32).build(POSITIONS, 10)
    assert torch.equal(masks["full_attention"], expected(None))
    assert torch.equal(masks["sliding_attention"], expected(3))


def test_masks_have_the_models_precision():
    mask = AttentionMasks(LlamaConfig(), torch.bfloat16).build(POSITIONS, 10)
    assert mask.dtype == torch.bfloat16
    assert mask.min() == torch.finfo(torch.bfloat16).min
