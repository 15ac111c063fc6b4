"""The tensors of an intervention, for every contender that can intervene: equal specs give equal tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workload import Intervention


def vector(spec: Intervention, width: int) -> Tensor:
    """A small random direction ``v_D`` in float32, to be added to the block's output."""
    return torch.randn(width, generator=torch.Generator().manual_seed(spec.seed)) * 0.05


def autoencoder(spec: Intervention, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases of encoder and decoder, square as in arXiv 2503.04429, small enough not to drown the model."""
    generator = torch.Generator().manual_seed(spec.seed)
    encoder, decoder = (torch.randn(width, width, generator=generator) * width**-0.5 for _ in range(2))
    return encoder, torch.zeros(width), decoder, torch.zeros(width)


def replaced(h_XD: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """What a residual autoencoder makes of activations: ``h + W2 relu(W1 h + b1) + b2``."""
    encoder, encoder_bias, decoder, decoder_bias = weights
    return h_XD + F.linear(F.relu(F.linear(h_XD, encoder, encoder_bias)), decoder, decoder_bias)
