from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mappers.errors import ArtifactMismatch, DataError
from mappers.loading import LoadedModel
from mappers.manifest import MAX_ROC_POINTS, ProbeFacts, RocPoint
from mappers.probes import Probe, auc, best_threshold, fit_logistic, highest_scores, roc, token_activations
from mappers.sites import Site
from mappers.tensors import load_probe, load_vector, save_probe
from tests.mappers.test_tensors import manifest

POINT = RocPoint(threshold=0.5, false_positive_rate=0.25, true_positive_rate=0.75)
FACTS = ProbeFacts(on=0.5, off=-0.5, choice="youden", auc=0.9, roc=(POINT,))


def clouds(shift: float, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise_ND = torch.randn(2 * count, 8, generator=generator) * torch.tensor([1.0, 100.0] * 4)
    noise_ND[:count, 0] += shift
    return noise_ND[:count], noise_ND[count:]


def test_the_fit_finds_the_direction_whatever_the_scale_of_the_others() -> None:
    positive_ND, negative_ND = clouds(6.0)
    weight_D, bias = fit_logistic(positive_ND, negative_ND, l2=1e-2)
    probe = Probe(weight_D, bias, 0.0, 0.0)
    assert float((probe.scores(positive_ND) > 0).float().mean()) > 0.98
    assert float((probe.scores(negative_ND) > 0).float().mean()) < 0.02
    assert int((weight_D.abs() * torch.tensor([1.0, 100.0] * 4)).argmax()) == 0
    again_D, same = fit_logistic(positive_ND, negative_ND, l2=1e-2)
    assert torch.equal(weight_D, again_D)
    assert bias == same


def test_the_fit_is_at_the_minimum_and_a_large_l2_shrinks_it() -> None:
    """At the minimum of a balanced loss the mean error of both classes is the same, as the bias is not shrunk."""
    positive_ND, negative_ND = clouds(1.5, 60)
    weight_D, bias = fit_logistic(positive_ND, negative_ND[:20], l2=1e-2)
    probability = [(h_ND.double() @ weight_D.double() + bias).sigmoid() for h_ND in (positive_ND, negative_ND[:20])]
    assert float((1 - probability[0]).mean()) == pytest.approx(float(probability[1].mean()), abs=1e-5)
    shrunk_D, _ = fit_logistic(positive_ND, negative_ND[:20], l2=100.0)
    assert float(shrunk_D.norm()) < 0.05 * float(weight_D.norm())


def test_prompts_without_a_difference_are_refused() -> None:
    same_ND = torch.ones(5, 4)
    with pytest.raises(DataError, match="two different datasets"):
        fit_logistic(same_ND, same_ND, l2=1.0)
    with pytest.raises(DataError, match="both kinds"):
        fit_logistic(same_ND, same_ND[:0], l2=1.0)


def test_auc_is_the_chance_of_the_right_order() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40).round(1).tolist(), rng.normal(0, 1, 30).round(1).tolist()
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert auc([1.0], [1.0]) == 0.5


def test_the_curve_rises_and_is_bounded() -> None:
    rng = np.random.default_rng(1)
    points = roc(rng.normal(1, 1, 300).tolist(), rng.normal(0, 1, 300).tolist())
    assert len(points) == MAX_ROC_POINTS
    rates = [(point.false_positive_rate, point.true_positive_rate) for point in points]
    assert rates == sorted(rates)
    assert (rates[0], max(rates[-1])) == ((0.0, 0.0), pytest.approx(1.0, abs=0.01))
    assert [point.threshold for point in points] == sorted((p.threshold for p in points), reverse=True)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(None, 2.5), (0.0, 4.5), (0.25, 2.5), (1.0, 0.5)],
)
def test_the_threshold_keeps_to_the_rate(rate: float | None, expected: float) -> None:
    assert best_threshold([1.0, 3.0, 3.0, 5.0], [0.0, 0.0, 2.0, 4.0], rate) == expected


def test_scores_are_of_every_token_and_the_highest_is_kept(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, sequences = make_llama(0), [[5, 6, 7, 8], [9], [10, 11]]
    every = token_activations(loaded, [Site(0), Site(2)], sequences, last=False, batch_size=2)
    last = token_activations(loaded, [Site(0), Site(2)], sequences, last=True, batch_size=2)
    assert (every[Site(2)].shape, last[Site(0)].shape) == ((7, 32), (3, 32))
    probe = Probe(torch.randn(32, generator=torch.Generator().manual_seed(1)), 0.5, 0.0, 0.0)
    found = highest_scores(loaded, {Site(2): probe}, sequences, batch_size=2)[Site(2)]
    lengths = sorted(map(len, sequences))
    expected = [float(probe.scores(h_ND).max()) for h_ND in every[Site(2)].split(lengths)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_probe_comes_back_as_it_was(tmp_path: Path) -> None:
    probe = Probe(torch.arange(6.0), -0.25, 0.5, -0.5)
    saved = save_probe(tmp_path, probe, manifest("probe", probe=FACTS))
    loaded, probes = load_probe(tmp_path)
    assert loaded == saved
    assert torch.equal(probes[Site(1)].weight_D, probe.weight_D)
    assert (probes[Site(1)].bias, probes[Site(1)].on, probes[Site(1)].off) == (-0.25, 0.5, -0.5)
    with pytest.raises(ArtifactMismatch, match="not a vector"):
        load_vector(tmp_path)
    with pytest.raises(ArtifactMismatch, match="float32 and finite"):
        save_probe(tmp_path, replace(probe, bias=float("inf")), saved)


@pytest.mark.parametrize(
    ("kind", "sites", "parts"),
    [
        ("probe", (1,), {}),
        ("probe", (1, 2), {"probe": FACTS}),
        ("vector", (1,), {"probe": FACTS}),
        ("probe", (1,), {"probe": FACTS.model_dump() | {"off": 0.75}}),
        ("probe", (1,), {"probe": FACTS.model_dump() | {"roc": [POINT.model_dump()] * 65}}),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(kind: str, sites: tuple[int, ...], parts: dict) -> None:
    with pytest.raises(ValueError, match=r"probe|off is|at most 64"):
        manifest(kind, sites, **parts)
