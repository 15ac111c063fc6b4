from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from mappers.activations.pairs import Pairs
from mappers.errors import DataError, TrainingError
from mappers.exchanges import Exchange
from mappers.fit import Fit, StepReport, TrainingConfig
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.losses import LossWeights
from mappers.modules import Mapper, MapperConfig, build_mapper
from mappers.pair_sums import PairSums
from mappers.sites import Site
from mappers.training import evaluate_switch, solve_switch, train_mapper, train_switch

Twins = tuple[LoadedModel, LoadedModel]
CPU = torch.device("cpu")


def exchanges(count: int, seed: int = 0) -> list[Exchange]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 20, (count,), generator=generator).tolist()
    return [Exchange(tuple(torch.randint(4, 100, (n,), generator=generator).tolist()), n // 2) for n in lengths]


def config(
    steps: int,
    *,
    kl: float = 1.0,
    mse: float = 0.1,
    cosine: float = 0.0,
    rate: float = 3e-3,
    seed: int = 0,
    **settings: object,
) -> TrainingConfig:
    base = TrainingConfig(
        loss=LossWeights(kl=kl, mse=mse, cosine=cosine),
        steps=steps,
        batch_size=8,
        learning_rate=rate,
        seed=seed,
        validate_every=10,
    )
    return TrainingConfig.model_validate(dict(base) | settings)


def fit(steps: int, sites: tuple[Site, ...] = (Site(0),), **options: object) -> Fit:
    shape = MapperConfig(kind="autoencoder", d_source=32, d_target=32, residual=True)
    return Fit.fresh(dict.fromkeys(sites, shape), config(steps, **options), device=CPU)  # type: ignore[arg-type]


def run(fitted: Fit, twins: Twins, steps: int | None = None) -> list[StepReport]:
    return list(islice(train_switch(fitted, *twins, exchanges(40), exchanges(8, seed=1)), steps))


def parameters(fitted: Fit) -> dict[str, Tensor]:
    return {name: value for name, value in fitted.state().items() if name.startswith("parameter.")}


def test_a_residual_switch_starts_as_the_model_and_ends_nearer_the_base(twins: Twins) -> None:
    fitted, held_out = fit(40), exchanges(8, seed=1)
    before = evaluate_switch({}, *twins, held_out)
    assert evaluate_switch(fitted.mappers, *twins, held_out)["kl"] == pytest.approx(before["kl"])
    reports = run(fitted, twins)
    assert [report.step for report in reports] == list(range(1, 41))
    assert [report.step for report in reports if report.validation] == [10, 20, 30, 40]
    assert reports[-1].validation["kl"] < 0.9 * before["kl"]
    assert reports[-1].validation["agreement"] >= before["agreement"]


def test_an_interrupted_fit_ends_in_the_same_tensors(twins: Twins) -> None:
    straight = fit(12, sites=(Site(0), Site(1)))
    run(straight, twins)
    first = fit(12, sites=(Site(0), Site(1)))
    run(first, twins, steps=5)
    saved = first.state()
    resumed = fit(12, sites=(Site(0), Site(1)), seed=0)
    resumed.restore(saved)
    reports = run(resumed, twins)
    assert [report.step for report in reports] == list(range(6, 13))
    assert all(torch.equal(value, parameters(resumed)[name]) for name, value in parameters(straight).items())


def test_the_seed_decides_the_result(twins: Twins) -> None:
    one, same, other = fit(2), fit(2), fit(2, seed=1)
    for fitted in (one, same, other):
        run(fitted, twins)
    assert all(torch.equal(value, parameters(same)[name]) for name, value in parameters(one).items())
    assert not all(torch.equal(value, parameters(other)[name]) for name, value in parameters(one).items())


def test_each_loss_alone_falls(twins: Twins) -> None:
    for name in ("kl", "mse", "cosine"):
        weights = {"kl": 0.0, "mse": 0.0} | {name: 1.0}
        reports = run(fit(30, rate=1e-2, **weights), twins)
        assert reports[-1].losses[name] < 0.9 * reports[0].losses[name]
        assert reports[0].losses["loss"] == pytest.approx(reports[0].losses[name])


def test_models_stay_untouched_and_hooks_are_gone(twins: Twins) -> None:
    before = [parameter.clone() for model in twins for parameter in model.model.parameters()]
    run(fit(3), twins)
    after = [parameter for model in twins for parameter in model.model.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert not any(block._forward_hooks for model in twins for block in model.stack.blocks)


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_mappers(twins: Twins) -> None:
    fitted = fit(5)
    with torch.no_grad():
        fitted.mappers[Site(0)].get_parameter("decoder_bias")[0] = float("nan")
    before = parameters(fitted)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        run(fitted, twins)
    assert fitted.step == 0
    assert all(torch.equal(v.nan_to_num(7), parameters(fitted)[n].nan_to_num(7)) for n, v in before.items())


def test_unusable_input_is_refused(twins: Twins, make_llama) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match="no exchange"):
        next(train_switch(fit(1), *twins, []))
    with pytest.raises(DataError, match="fine-tuned from"):
        next(train_switch(fit(1), twins[0], make_llama(1, width=16), exchanges(2)))
    with pytest.raises(DataError, match="vocabularies"):
        next(train_switch(fit(1), twins[0], make_llama(1, tokenizer="unigram"), exchanges(2)))


def test_ridge_switches_several_sites_and_beats_the_unswitched_model(twins: Twins) -> None:
    rows, held_out = exchanges(60), exchanges(8, seed=1)
    sites = [Site(1), Site(0)]
    mappers = dict(solve_switch(*twins, sites, rows, lambda sums: sums.ridge(ridge=1e-3, residual=True), batch_size=8))
    assert list(mappers) == [Site(0), Site(1)]
    identity = {
        site: build_mapper(MapperConfig(kind="affine", d_source=32, d_target=32, residual=True)) for site in sites
    }
    unswitched = evaluate_switch(identity, *twins, held_out)
    assert evaluate_switch(mappers, *twins, held_out)["mse"] < unswitched["mse"]


def test_training_sees_what_serving_does(twins: Twins) -> None:
    """The loss is that of a plain forward with ``h <- f(h)``, row by row without padding."""
    tuned, base = twins
    mapper = build_mapper(
        MapperConfig(kind="affine", d_source=32, d_target=32), generator=torch.Generator().manual_seed(0)
    )
    rows, sums = exchanges(6), 0.0
    for row in rows:
        ids, chosen = torch.tensor([row.ids]), list(row.loss_positions)
        with torch.no_grad():
            expected = base.model(ids).logits[0, chosen].log_softmax(-1)
            with block_outputs(tuned.stack, {Site(1): mapper.forward}):
                said = tuned.model(ids).logits[0, chosen].log_softmax(-1)
        sums += float((expected.exp() * (expected - said)).sum())
    measured = evaluate_switch({Site(1): mapper}, tuned, base, rows)
    assert measured["kl"] == pytest.approx(sums / sum(len(row.loss_positions) for row in rows), rel=1e-4)


def test_a_mapper_between_models_learns_a_linear_relation() -> None:
    generator = torch.Generator().manual_seed(0)
    x_NS, w_SD = torch.randn(400, 6, generator=generator), torch.randn(6, 9, generator=generator)
    pairs, held_out = Pairs(x_NS[:300], x_NS[:300] @ w_SD), Pairs(x_NS[300:], x_NS[300:] @ w_SD)
    shape = MapperConfig(kind="affine", d_source=6, d_target=9)
    fitted = Fit.fresh({Site(2): shape}, config(300, kl=0.0, mse=1.0, rate=3e-2), device=CPU)
    *_, last = train_mapper(fitted, Site(2), pairs, held_out)
    assert last.validation["fvu"] < 0.05
    with pytest.raises(TrainingError, match="leave kl out"):
        next(train_mapper(Fit.fresh({Site(2): shape}, config(1), device=CPU), Site(2), pairs))
    with pytest.raises(TrainingError, match="no token pairs"):
        next(train_mapper(fitted, Site(2), Pairs(x_NS[:0], x_NS[:0])))


def test_a_checkpoint_of_other_mappers_is_refused() -> None:
    with pytest.raises(TrainingError, match="other mappers"):
        fit(2).restore(fit(2, sites=(Site(1),)).state())


def test_patience_ends_at_the_best_mappers_also_after_an_interruption(twins: Twins) -> None:
    """The rate is so high that the validation loss soon rises."""
    settings: dict[str, object] = {"rate": 0.1, "validate_every": 2, "patience": 3}
    straight, held_out = fit(60, **settings), exchanges(8, seed=1)
    losses = {r.step: r.validation["loss"] for r in run(straight, twins) if r.validation}
    assert straight.best_step is not None
    assert straight.best_step < straight.step < 60
    assert losses[straight.best_step] == min(losses.values())
    measured = evaluate_switch(straight.mappers, *twins, held_out)
    assert measured["kl"] + 0.1 * measured["mse"] == pytest.approx(min(losses.values()))

    first = fit(60, **settings)
    run(first, twins, steps=straight.step - 1)
    resumed = fit(60, **settings)
    resumed.restore(first.state())
    run(resumed, twins)
    assert all(torch.equal(value, parameters(resumed)[name]) for name, value in parameters(straight).items())
    with pytest.raises(TrainingError, match="patience needs validation"):
        next(train_switch(fit(1, **settings), *twins, exchanges(8)))


def test_mixed_precision_trains_nearly_the_same_and_keeps_float32_parameters(twins: Twins) -> None:
    whole, mixed = fit(10), fit(10, mixed_precision=True)
    (*_, exact), (*_, rough) = run(whole, twins), run(mixed, twins)
    assert {p.dtype for p in mixed.mappers[Site(0)].parameters()} == {torch.float32}
    assert not torch.equal(
        parameters(whole)["parameter.resid_post.0.encoder_weight"],
        parameters(mixed)["parameter.resid_post.0.encoder_weight"],
    )
    assert rough.validation["kl"] == pytest.approx(exact.validation["kl"], rel=0.1)


def test_small_batches_accumulated_train_as_large_ones_do(twins: Twins) -> None:
    reports = run(fit(10, accumulate=2, batch_size=4), twins)
    assert len(reports) == 10
    assert reports[-1].validation["kl"] < evaluate_switch({}, *twins, exchanges(8, seed=1))["kl"]


@pytest.mark.parametrize("form", ["procrustes", "low_rank"])
def test_other_closed_forms_switch_too(twins: Twins, form: str) -> None:
    def solve(sums: PairSums) -> Mapper:
        return sums.procrustes() if form == "procrustes" else sums.low_rank(rank=16, ridge=1e-3, residual=True)

    mappers = dict(solve_switch(*twins, [Site(0)], exchanges(40), solve, batch_size=8))
    before, after = (evaluate_switch(on, *twins, exchanges(8, seed=1)) for on in ({}, mappers))
    assert after["kl"] < before["kl"]
