from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mappers.drift import DriftMonitor, DriftSums, monitor_prompts
from mappers.errors import ArtifactMismatch, DataError
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.manifest import DriftFacts
from mappers.modules import MapperConfig, build_mapper
from mappers.sites import Site
from mappers.tensors import load_monitors, load_switch, save_switch
from tests.mappers.test_tensors import manifest

WIDTH = 24


def activations(count: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Normal, with variances from 100 down to 0.01 along directions of their own, far from the origin."""
    generator = torch.Generator().manual_seed(7)
    basis_DD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    scale_D = torch.logspace(1, -1, WIDTH)
    noise_ND = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return (noise_ND * scale_D + shift * torch.eye(WIDTH)[-1]) @ basis_DD + 50.0


def fitted(count: int = 4000, **how) -> DriftMonitor:
    sums = DriftSums(WIDTH)
    for part in activations(count).split(97):
        sums.add(part)
    return sums.solve(**how)


def test_the_mean_over_what_it_was_made_from_is_one() -> None:
    for components in (1, 4, 23):
        monitor = fitted(components=components)
        assert float(monitor.distances(activations(4000)).mean()) == pytest.approx(1.0, abs=1e-3)
        assert float(monitor.distances(activations(4000, seed=1)).mean()) == pytest.approx(1.0, abs=0.05)


def test_it_is_the_mahalanobis_distance_of_probabilistic_pca() -> None:
    monitor = fitted(components=5)
    u_RD, variances_Q = monitor.basis_RD.double(), monitor.variances_Q.double()
    assert torch.allclose(u_RD @ u_RD.T, torch.eye(5, dtype=torch.float64), atol=1e-6)
    outside_DD = torch.eye(WIDTH, dtype=torch.float64) - u_RD.T @ u_RD
    covariance_DD = u_RD.T @ variances_Q[:-1].diag() @ u_RD + variances_Q[-1] * outside_DD
    h_ND = activations(50, seed=2)
    x_ND = h_ND.double() - monitor.mean_D.double()
    expected = (x_ND @ covariance_DD.inverse() * x_ND).sum(1) / WIDTH
    assert torch.allclose(monitor.distances(h_ND).double(), expected, rtol=1e-3)


def test_a_shift_that_is_small_beside_the_largest_variance_is_seen() -> None:
    """Along the direction of least variance, at a fifth of the typical norm: a plain distance would not notice."""
    monitor = fitted()
    moved = activations(200, seed=3, shift=3.0)
    assert float((moved - moved.mean(0)).norm(dim=1).mean()) > 4 * 3.0
    assert float(monitor.distances(moved).mean()) > 5.0


def test_few_tokens_give_fewer_components_and_two_give_none() -> None:
    monitor = fitted(count=6)
    assert monitor.basis_RD.shape == (4, WIDTH)
    assert bool(monitor.distances(activations(10)).isfinite().all())
    sums = DriftSums(WIDTH)
    sums.add(activations(2))
    with pytest.raises(DataError, match="too few"):
        sums.solve()
    for _ in range(5):
        sums.add(activations(1))
    assert bool(sums.solve().distances(activations(10)).isfinite().all())


def test_each_site_is_read_as_it_is_served(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    mappers = {site: build_mapper(MapperConfig(kind="affine", d_source=32, d_target=32)) for site in (Site(2), Site(0))}
    torch.manual_seed(0)
    for mapper in mappers.values():
        mapper.requires_grad_(False).weight.copy_(torch.randn(32, 32))
    prompts = [[i, i + 1, i + 2, i + 3] for i in range(4, 40)]
    found = monitor_prompts(loaded, mappers, prompts[:30], prompts[30:], batch_size=7)
    seen = {}
    callbacks = {Site(0): mappers[Site(0)].forward, Site(2): lambda h: seen.setdefault("h", h)}
    with torch.no_grad(), block_outputs(loaded.stack, callbacks):
        loaded.model(torch.tensor(prompts[:30]))
    mean_D = seen["h"].reshape(-1, 32).mean(0)
    assert torch.allclose(found[Site(2)][0].mean_D, mean_D, atol=1e-4)
    assert [facts.tokens for _, facts in found.values()] == [24, 24]
    assert all(facts.p99 >= facts.mean > 0 and facts.components == 31 for _, facts in found.values())


def test_monitors_come_back_with_the_switch(tmp_path: Path) -> None:
    config = MapperConfig(kind="affine", d_source=6, d_target=6)
    mappers = {Site(layer): build_mapper(config) for layer in (0, 2)}
    monitor = DriftMonitor(torch.arange(6.0), torch.eye(6)[:2], torch.tensor([3.0, 2.0, 1.0]))
    drift = {"resid_post.2": DriftFacts(components=2, tokens=9, mean=1.0, std=0.5, p99=2.0)}
    save_switch(tmp_path / "a", mappers, manifest("switch", (0, 2), mapper=config, drift=drift), {Site(2): monitor})
    assert set(load_switch(tmp_path / "a")[1]) == {Site(0), Site(2)}
    ((site, loaded),) = load_monitors(tmp_path / "a").items()
    assert site == Site(2)
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors().values(), monitor.tensors().values(), strict=True))
    plain = save_switch(tmp_path / "b", mappers, manifest("switch", (0, 2), mapper=config))
    assert load_monitors(tmp_path / "b") == {}
    assert b"drift" not in (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(ArtifactMismatch, match="not those"):
        save_switch(tmp_path / "c", mappers, plain, {Site(2): monitor})
    with pytest.raises(ValueError, match="at the sites of a switch only"):
        manifest("vector", (0, 2), drift=drift)
