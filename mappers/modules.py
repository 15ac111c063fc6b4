"""Mappers as modules: functions from activations at a source site to activations at a target site.

Shapes: X = any leading dimensions, S = d_source, D = d_target, H = hidden.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mappers.mapper_config import MapperConfig, MapperKind

__all__ = ["AffineMapper", "AutoencoderMapper", "Mapper", "MapperConfig", "MapperKind", "build_mapper"]


class AffineMapper(nn.Module):
    """``x W^T + b``, plus ``x`` if residual: the baseline of arXiv 2503.04429 and the form of a ridge solution.

    Parameters are float32 and start at zero; a residual one is therefore the identity until trained.
    """

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.d_target, config.d_source))
        self.bias = nn.Parameter(torch.zeros(config.d_target))

    def forward(self, x_XS: Tensor) -> Tensor:
        """Maps ``(..., d_source)`` to ``(..., d_target)``; computes in the parameters' dtype, keeps the input's."""
        source_XS = x_XS.to(self.weight.dtype)
        y_XD = F.linear(source_XS, self.weight, self.bias)
        return (source_XS + y_XD if self.config.residual else y_XD).to(x_XS.dtype)

    def linear_part(self) -> Tensor:
        """The matrix ``(d_target, d_source)`` that carries differences of activations, the identity included."""
        weight_DS = self.weight.detach()
        return weight_DS + torch.eye(len(weight_DS)).to(weight_DS) if self.config.residual else weight_DS


class AutoencoderMapper(nn.Module):
    """``W2 relu(W1 x + b1) + b2``, plus ``x`` if residual (arXiv 2503.04429, section 3).

    Parameters are float32 and start at zero; :func:`build_mapper` draws the starting weights.
    """

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_width
        self.encoder_weight = nn.Parameter(torch.zeros(hidden, config.d_source))
        self.encoder_bias = nn.Parameter(torch.zeros(hidden))
        self.decoder_weight = nn.Parameter(torch.zeros(config.d_target, hidden))
        self.decoder_bias = nn.Parameter(torch.zeros(config.d_target))

    def forward(self, x_XS: Tensor) -> Tensor:
        """Maps ``(..., d_source)`` to ``(..., d_target)``; computes in the parameters' dtype, keeps the input's."""
        source_XS = x_XS.to(self.encoder_weight.dtype)
        code_XH = F.relu(F.linear(source_XS, self.encoder_weight, self.encoder_bias))
        y_XD = F.linear(code_XH, self.decoder_weight, self.decoder_bias)
        return (source_XS + y_XD if self.config.residual else y_XD).to(x_XS.dtype)


Mapper = AffineMapper | AutoencoderMapper


def build_mapper(config: MapperConfig, *, generator: torch.Generator | None = None) -> Mapper:
    """A mapper with starting weights drawn uniformly from ``+-1/sqrt(fan_in)`` (those of ``nn.Linear``).

    The last layer of a residual mapper stays at zero instead: it starts at the identity, so training departs from the
    model as it is. ``generator`` makes the draw repeatable; None uses torch's own state.
    """
    mapper = AutoencoderMapper(config) if config.kind == "autoencoder" else AffineMapper(config)
    with torch.no_grad():
        if isinstance(mapper, AutoencoderMapper):
            _draw(mapper.encoder_weight, mapper.encoder_bias, generator)
            if not config.residual:
                _draw(mapper.decoder_weight, mapper.decoder_bias, generator)
        elif not config.residual:
            _draw(mapper.weight, mapper.bias, generator)
    return mapper


def _draw(weight: Tensor, bias: Tensor, generator: torch.Generator | None) -> None:
    bound = 1.0 / sqrt(weight.shape[1])
    weight.uniform_(-bound, bound, generator=generator)
    bias.uniform_(-bound, bound, generator=generator)
