"""Interventions as pure functions of selected token rows.

Shapes: K selected tokens, D width. All float32: ``h_KD`` activations, ``v_KD`` directions, ``unit_KD`` directions of
length 1, ``*_K`` settings a token. Each row of the result depends on the same row of the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from server.types import Operation


def unit(v_KD: Tensor) -> Tensor:
    """``v / |v|``, which :func:`ablate` and :func:`clamp` take: made once for a plan, not at every step."""
    unit_KD: Tensor = v_KD / vector_norm(v_KD, dim=-1, keepdim=True)
    return unit_KD


def add(h_KD: Tensor, v_KD: Tensor, strength_K: Tensor) -> Tensor:
    """``h + a v`` (activation addition; arXiv 2503.04429, section "Steering vectors")."""
    return torch.addcmul(h_KD, strength_K[:, None], v_KD)


def ablate(h_KD: Tensor, unit_KD: Tensor, strength_K: Tensor) -> Tensor:
    """``h - a (h.u) u``: removes the component along ``u`` (strength 1), in part (< 1) or mirrors it (2)."""
    share_K = strength_K * vecdot(h_KD, unit_KD)
    return torch.addcmul(h_KD, share_K[:, None], unit_KD, value=-1)


def clamp(h_KD: Tensor, unit_KD: Tensor, strength_K: Tensor, low_K: Tensor, high_K: Tensor) -> Tensor:
    """Moves the projection on ``u`` into ``[low, high]`` (units of the activation).

    ``strength`` is the share of the way: 1 reaches the interval, 0 changes nothing. A projection inside is left alone.
    """
    projection_K = vecdot(h_KD, unit_KD)
    share_K = strength_K * (torch.clamp(projection_K, low_K, high_K) - projection_K)
    return torch.addcmul(h_KD, share_K[:, None], unit_KD)


def steer(
    operation: Operation,
    h_KD: Tensor,
    v_KD: Tensor,
    strength_K: Tensor,
    low_K: Tensor | None = None,
    high_K: Tensor | None = None,
) -> Tensor:
    """One of the operations along a direction by its name, for ``v_KD`` as that operation takes it."""
    if operation == "add":
        return add(h_KD, v_KD, strength_K)
    if operation == "ablate":
        return ablate(h_KD, v_KD, strength_K)
    assert operation == "clamp"
    assert low_K is not None
    assert high_K is not None
    return clamp(h_KD, v_KD, strength_K, low_K, high_K)


def switch(h_KD: Tensor, mapper: Callable[[Tensor], Tensor], strength_K: Tensor) -> Tensor:
    """``(1 - s) h + s f(h)``: the safety switch (arXiv 2503.04429) with strength ``s`` as a dial."""
    mixed_KD: Tensor = torch.lerp(h_KD, mapper(h_KD), strength_K[:, None])
    return mixed_KD
