"""Switches and probes of one model made into those of another, exactly, through affine mappers between the two.

With ``m(h) = M h + c`` from target to source and ``g`` with the linear part ``G`` back, a source switch ``f`` becomes
``h + g(f(m(h))) - g(m(h)) = h + G (f(M h + c) - (M h + c))``: what it changes in the source model is carried over, and
what the mappers cannot carry is left as it is. For every kind of switch that is again a mapper of a kind that serves.

Shapes: S width of the source model, T width of the target model, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mappers.modules import AutoencoderMapper, Mapper, MapperConfig, build_mapper
from mappers.vectors import linear_part


def transfer_switch(switch: Mapper, into: Mapper, back: Mapper, *, strength: float = 1.0) -> Mapper:
    """The switch ``h + s (g(f(m(h))) - g(m(h)))`` of the target model, residual, float32, without gradients.

    ``into`` is ``m`` (target to source), ``back`` is ``g`` (source to target); both are affine. An affine switch gives
    an affine one, an autoencoder an autoencoder of the same hidden width, with ``2 S`` units more where it is not
    residual: ``x = relu(x) - relu(-x)`` carries what it takes away. Raises DataError for mappers that are not affine.
    """
    m_ST, c_S = _affine(into)
    g_TS = strength * linear_part(back).double()
    if isinstance(switch, AutoencoderMapper):
        return _autoencoder(switch, m_ST, c_S, g_TS)
    a_SS, b_S = _affine(switch)
    change_SS = a_SS - torch.eye(len(a_SS)).to(a_SS)
    weights = {"weight": g_TS @ change_SS @ m_ST, "bias": g_TS @ (change_SS @ c_S + b_S)}
    return _residual(MapperConfig(kind="affine", d_source=len(g_TS), d_target=len(g_TS), residual=True), weights)


def transfer_probe(mapper: Mapper, weight_S: Tensor, bias: float) -> tuple[Tensor, float]:
    """A linear read-out ``w.h + b`` of the source model, as one of the target model: ``(W^T w, w.c + b)``.

    ``mapper`` leads from target to source and is affine; the read-out is that of the mapped activation, exactly. Raises
    DataError for a mapper that is not affine.
    """
    m_ST, c_S = _affine(mapper)
    w_S = weight_S.double()
    return (m_ST.T @ w_S).to(weight_S.dtype), float(w_S @ c_S) + bias


def _autoencoder(switch: AutoencoderMapper, m_ST: Tensor, c_S: Tensor, g_TS: Tensor) -> Mapper:
    encoder_HS, decoder_SH = switch.encoder_weight.detach().double(), switch.decoder_weight.detach().double()
    weights = {
        "encoder_weight": encoder_HS @ m_ST,
        "encoder_bias": encoder_HS @ c_S + switch.encoder_bias.detach().double(),
        "decoder_weight": g_TS @ decoder_SH,
        "decoder_bias": g_TS @ switch.decoder_bias.detach().double(),
    }
    if not switch.config.residual:
        weights["encoder_weight"] = torch.cat([weights["encoder_weight"], m_ST, -m_ST])
        weights["encoder_bias"] = torch.cat([weights["encoder_bias"], c_S, -c_S])
        weights["decoder_weight"] = torch.cat([weights["decoder_weight"], -g_TS, g_TS], dim=1)
    width, hidden = len(g_TS), len(weights["encoder_bias"])
    config = MapperConfig(kind="autoencoder", d_source=width, d_target=width, residual=True, hidden=hidden)
    return _residual(config, weights)


def _residual(config: MapperConfig, weights: dict[str, Tensor]) -> Mapper:
    mapper = build_mapper(config)
    mapper.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return mapper.requires_grad_(False).eval()


def _affine(mapper: Mapper) -> tuple[Tensor, Tensor]:
    """``(W, b)`` in float64; the bias is the mapper's value at zero, whatever its kind."""
    w_DS = linear_part(mapper).double()
    with torch.no_grad():
        b_D = mapper(torch.zeros(w_DS.shape[1]).to(linear_part(mapper)))
    return w_DS, b_D.double()
