from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mappers.attack import Attack, attacked_kl
from mappers.exchanges import Exchange
from mappers.fit import Fit, TrainingConfig
from mappers.loading import LoadedModel
from mappers.losses import LossWeights, next_token_kl
from mappers.modules import MapperConfig, build_mapper
from mappers.replies import read_replies
from mappers.sites import Site
from mappers.training import train_switch

Twins = tuple[LoadedModel, LoadedModel]
SITE = Site(0)
SHAPE = MapperConfig(kind="autoencoder", d_source=32, d_target=32, residual=True)


def exchanges(count: int, inserted: tuple[int, int] = (2, 5)) -> list[Exchange]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(4, 100, (count, 14), generator=generator).tolist()
    return [Exchange(tuple(row), 9, (1, 8), inserted) for row in rows]


def test_an_attack_finds_what_the_models_differ_on(twins: Twins) -> None:
    tuned, base = twins
    asked, mappers = exchanges(6), {SITE: build_mapper(SHAPE)}
    target = read_replies(base, asked, [])
    plain = next_token_kl(target.logits_NV, read_replies(tuned, asked, [SITE], mappers).logits_NV)
    weak, strong = (
        attacked_kl(tuned, mappers, asked, target, Attack(radius=radius, steps=10)) for radius in (0.2, 1.0)
    )
    assert plain < weak < strong


def test_the_mappers_are_what_an_attack_trains(twins: Twins) -> None:
    tuned, base = twins
    asked, mapper = exchanges(4), build_mapper(SHAPE)
    attacked_kl(tuned, {SITE: mapper}, asked, read_replies(base, asked, []), Attack()).backward()
    assert mapper.decoder_bias.grad is not None
    assert mapper.decoder_bias.grad.abs().sum() > 0


def test_only_inserted_tokens_are_moved(twins: Twins) -> None:
    tuned, base = twins
    mappers = {SITE: build_mapper(SHAPE)}
    untouched = [replace(one, inserted=(0, 0)) for one in exchanges(4)]
    target = read_replies(base, untouched, [])
    plain = next_token_kl(target.logits_NV, read_replies(tuned, untouched, [SITE], mappers).logits_NV)
    assert attacked_kl(tuned, mappers, untouched, target, Attack()).item() == pytest.approx(plain.item())


def test_a_switch_trained_under_attack_holds_better_against_it(twins: Twins) -> None:
    tuned, base = twins
    asked, attack = exchanges(32), Attack(steps=2)
    target = read_replies(base, asked, [])
    worst = []
    for trained_with in (None, attack):
        config = TrainingConfig(loss=LossWeights(kl=1.0), steps=30, batch_size=8, learning_rate=3e-3)
        fit = Fit.fresh({SITE: SHAPE}, config, device=torch.device("cpu"))
        reports = list(train_switch(fit, tuned, base, asked, attack=trained_with))
        assert ("attacked" in reports[-1].losses) == (trained_with is not None)
        worst.append(attacked_kl(tuned, fit.mappers, asked, target, attack).item())
    assert worst[1] < worst[0]
