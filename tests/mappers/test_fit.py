from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mappers.batch_order import BatchOrder
from mappers.fit import Fit, TrainingConfig
from mappers.losses import LossWeights, activation_losses
from mappers.modules import MapperConfig
from mappers.sites import Site

CPU = torch.device("cpu")
SITE = Site(0)


def config(**settings: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"loss": LossWeights(mse=1.0), "steps": 10, "learning_rate": 1e-2} | settings)


def fresh(**settings: object) -> Fit:
    return Fit.fresh({SITE: MapperConfig(kind="affine", d_source=4, d_target=4)}, config(**settings), device=CPU)


def weights(fit: Fit) -> Tensor:
    return torch.cat([p.detach().flatten() for p in fit.mappers[SITE].parameters()])


@pytest.mark.parametrize(
    ("epochs", "rows", "batch_size", "accumulate", "steps"),
    [(3, 40, 8, 1, 15), (3, 40, 8, 4, 4), (1, 43, 8, 1, 5), (2, 3, 8, 1, 2), (1, 40, 8, 8, 1)],
)
def test_epochs_are_as_many_steps_as_see_the_rows_that_often(
    epochs: int, rows: int, batch_size: int, accumulate: int, steps: int
) -> None:
    made = TrainingConfig.for_epochs(
        epochs, rows, loss=LossWeights(mse=1.0), batch_size=batch_size, accumulate=accumulate
    )
    assert made.steps == steps


def test_a_step_of_many_small_batches_is_that_of_one_large_one() -> None:
    x, y = torch.randn(16, 4), torch.randn(16, 4)
    fits = fresh(batch_size=16), fresh(batch_size=4, accumulate=4)
    for fit in fits:
        size = fit.config.batch_size
        parts = ((x[i : i + size], y[i : i + size]) for i in range(0, 16, size))
        losses = fit.advance(activation_losses(fit.mappers[SITE](a), b) for a, b in parts)
        assert losses["loss"] == pytest.approx(losses["mse"])
    assert torch.allclose(weights(fits[0]), weights(fits[1]), atol=1e-6)


def test_the_batches_of_a_step_follow_those_of_the_step_before() -> None:
    fit, order = fresh(accumulate=2), BatchOrder([1] * 40, 4, seed=0)
    first = [*fit.batches(order)]
    fit.step = 1
    assert [*first, *fit.batches(order)] == [order.at(place) for place in range(4)]


def judged(fit: Fit, losses: list[float]) -> Fit:
    """Changes the mapper before each validation, so that it can be told later which one was kept."""
    for loss in losses:
        if fit.finished:
            break
        with torch.no_grad():
            fit.mappers[SITE].get_parameter("bias").fill_(loss)
        fit.step += 1
        fit.judge({"mse": loss})
    return fit


def test_patience_ends_a_fit_at_its_best_mappers() -> None:
    fit = judged(fresh(patience=2, steps=100), [5.0, 3.0, 4.0, 3.5, 1.0])
    assert (fit.step, fit.best_step, fit.finished) == (4, 2, True)
    fit.settle()
    assert fit.mappers[SITE].get_parameter("bias").tolist() == [3.0] * 4


def test_the_best_mappers_are_part_of_the_state() -> None:
    fit = judged(fresh(patience=3, steps=100), [5.0, 3.0, 4.0])
    resumed = fresh(patience=3, steps=100, seed=1)
    resumed.restore(fit.state())
    assert (resumed.step, resumed.best_step, resumed.finished) == (3, 2, False)
    judged(resumed, [3.0, 9.0])
    assert resumed.finished
    resumed.settle()
    assert resumed.mappers[SITE].get_parameter("bias").tolist() == [3.0] * 4


def test_without_patience_the_last_mappers_stay() -> None:
    fit = judged(fresh(), [1.0, 2.0])
    fit.settle()
    assert (fit.best_step, fit.mappers[SITE].get_parameter("bias").tolist()) == (None, [2.0] * 4)


def test_a_validation_that_is_not_a_number_is_never_the_best() -> None:
    fit = judged(fresh(patience=1), [float("nan")])
    assert (fit.finished, fit.best_step) == (True, None)
