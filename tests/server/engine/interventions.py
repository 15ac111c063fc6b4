"""Interventions with random tensors, resolved as the catalog would."""

import math
from dataclasses import replace

import torch

from mappers.mapper_config import MapperConfig
from mappers.modules import build_mapper
from mappers.probes import Probe
from mappers.sites import Site
from server.interventions.catalog import ResolvedIntervention
from server.interventions.gates import FOREVER, Gate, GateMark
from server.types import Apply

WIDTH = 32


def direction(seed: int, size: float = 1.0) -> torch.Tensor:
    v = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return size * v / v.norm()


def vector(operation="add", layers=(1,), strength=1.0, seed=0, apply=Apply(), size=1.0, **bounds):
    effects = {Site(layer): direction(seed + layer, size) for layer in layers}
    name = f"{operation}-{seed}"
    return ResolvedIntervention(operation, name, name, tuple(effects), strength, apply, effects, **bounds)


def mapper(kind="autoencoder", residual=True, seed=0, noise=0.2):
    torch.manual_seed(seed)
    rank = 5 if kind == "low_rank" else None
    made = build_mapper(MapperConfig(kind=kind, d_source=WIDTH, d_target=WIDTH, residual=residual, rank=rank))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * noise)
    return made.requires_grad_(False).eval()


def switch(kind="autoencoder", residual=True, layers=(1,), strength=1.0, seed=0, apply=Apply()):
    effects = {Site(layer): mapper(kind, residual, seed + layer) for layer in layers}
    name = f"switch-{kind}-{seed}"
    return ResolvedIntervention("switch", name, name, tuple(effects), strength, apply, effects)


def gate(layer=0, seed=0, on=0.0, off=None, hold=None) -> Gate:
    """With hysteresis; with ``hold`` for so many tokens after the one at which it opens."""
    probe = Probe(direction(seed), 0.1, on, on if off is None else off)
    low, tokens = (probe.off, FOREVER) if hold is None else (-math.inf, hold + 1)
    return Gate(GateMark(Site(layer), f"probe-{seed}", on, low, tokens), probe)


def gated(resolved: ResolvedIntervention, by: Gate | None = None, **how) -> ResolvedIntervention:
    return replace(resolved, gate=by or gate(**how))
