"""Interventions as pure functions of selected token rows.

Shapes: K selected tokens, D width. ``h_KD`` float32 activations, ``v_KD`` float32 directions, ``*_K`` float32
settings a token. Each row of the result depends on the same row of the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def add(h_KD: Tensor, v_KD: Tensor, strength_K: Tensor) -> Tensor:
    """``h + a v`` (activation addition; arXiv 2503.04429, section "Steering vectors")."""
    return torch.addcmul(h_KD, strength_K[:, None], v_KD)


def ablate(h_KD: Tensor, v_KD: Tensor, strength_K: Tensor) -> Tensor:
    """``h - a (h.v) v / |v|^2``: removes the component along ``v`` (strength 1), in part (< 1) or mirrors it (2)."""
    component_K = (h_KD * v_KD).sum(-1) / v_KD.square().sum(-1)
    return h_KD - (strength_K * component_K)[:, None] * v_KD


def clamp(h_KD: Tensor, v_KD: Tensor, strength_K: Tensor, low_K: Tensor, high_K: Tensor) -> Tensor:
    """Moves the projection on the unit vector along ``v`` into ``[low, high]`` (units of the activation).

    ``strength`` is the share of the way: 1 reaches the interval, 0 changes nothing. A projection inside is left alone.
    """
    unit_KD: Tensor = v_KD / v_KD.norm(dim=-1, keepdim=True)
    projection_K = (h_KD * unit_KD).sum(-1)
    target_K = torch.minimum(torch.maximum(projection_K, low_K), high_K)
    clamped_KD: Tensor = h_KD + (strength_K * (target_K - projection_K))[:, None] * unit_KD
    return clamped_KD


def switch(h_KD: Tensor, mapper: Callable[[Tensor], Tensor], strength_K: Tensor) -> Tensor:
    """``(1 - s) h + s f(h)``: the safety switch (arXiv 2503.04429) with strength ``s`` as a dial."""
    mixed_KD: Tensor = torch.lerp(h_KD, mapper(h_KD), strength_K[:, None])
    return mixed_KD
