"""Mappers as modules: functions from activations at a source site to activations at a target site.

Shapes: X = any leading dimensions, S = d_source, D = d_target, H = hidden, R = rank.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mappers.mapper_config import MapperConfig, MapperKind

__all__ = [
    "AffineMapper",
    "AutoencoderMapper",
    "LowRankMapper",
    "Mapper",
    "MapperConfig",
    "MapperKind",
    "build_mapper",
    "zero_mapper",
]


class AffineMapper(nn.Module):
    """``x W^T + b``, plus ``x`` if residual: the baseline of arXiv 2503.04429, a ridge or a Procrustes solution.

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
        return _with_identity(self.weight.detach(), self.config)


class LowRankMapper(nn.Module):
    """``U (V x) + b`` with ``rank`` rows in ``V``, plus ``x`` if residual: a reduced-rank regression, kept as factors.

    A token costs ``rank (d_source + d_target)`` products instead of ``d_source d_target``. Parameters are float32 and
    start at zero.
    """

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config
        rank = config.rank or 0
        self.down_weight = nn.Parameter(torch.zeros(rank, config.d_source))
        self.up_weight = nn.Parameter(torch.zeros(config.d_target, rank))
        self.bias = nn.Parameter(torch.zeros(config.d_target))

    def forward(self, x_XS: Tensor) -> Tensor:
        """Maps ``(..., d_source)`` to ``(..., d_target)``; computes in the parameters' dtype, keeps the input's."""
        source_XS = x_XS.to(self.down_weight.dtype)
        y_XD = F.linear(F.linear(source_XS, self.down_weight), self.up_weight, self.bias)
        return (source_XS + y_XD if self.config.residual else y_XD).to(x_XS.dtype)

    def linear_part(self) -> Tensor:
        """The matrix ``(d_target, d_source)`` that carries differences of activations, the identity included."""
        return _with_identity(self.up_weight.detach() @ self.down_weight.detach(), self.config)


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


Mapper = AffineMapper | LowRankMapper | AutoencoderMapper


def zero_mapper(config: MapperConfig) -> Mapper:
    """The module of a configuration with all parameters at zero, ready to be filled."""
    if config.kind == "autoencoder":
        return AutoencoderMapper(config)
    return LowRankMapper(config) if config.kind == "low_rank" else AffineMapper(config)


def build_mapper(config: MapperConfig, *, generator: torch.Generator | None = None) -> Mapper:
    """A mapper with starting weights drawn uniformly from ``+-1/sqrt(fan_in)`` (those of ``nn.Linear``).

    The last layer of a residual mapper stays at zero instead: it starts at the identity, so training departs from the
    model as it is. ``generator`` makes the draw repeatable; None uses torch's own state.
    """
    mapper = zero_mapper(config)
    with torch.no_grad():
        match mapper:
            case AutoencoderMapper():
                _draw(generator, mapper.encoder_weight, mapper.encoder_bias)
                last = mapper.decoder_weight, mapper.decoder_bias
            case LowRankMapper():
                _draw(generator, mapper.down_weight)
                last = mapper.up_weight, mapper.bias
            case AffineMapper():
                last = mapper.weight, mapper.bias
        if not config.residual:
            _draw(generator, *last)
    return mapper


def _draw(generator: torch.Generator | None, weight: Tensor, bias: Tensor | None = None) -> None:
    bound = 1.0 / sqrt(weight.shape[1])
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def _with_identity(weight_DS: Tensor, config: MapperConfig) -> Tensor:
    return weight_DS + torch.eye(len(weight_DS)).to(weight_DS) if config.residual else weight_DS
