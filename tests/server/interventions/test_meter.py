"""Running means of the relative change, one place an intervention."""

import pytest
import torch

from server.interventions.meter import MeterBank


def test_sums_relative_changes_of_its_own_tokens():
    meters = MeterBank("cpu")
    first, second = meters.open(), meters.open()
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    after = torch.tensor([[3.0, 9.0], [0.0, 3.0], [1.0, 0.0]])
    meters.record(torch.tensor([first, first, second]), before, after)
    assert meters.close(first) == pytest.approx(5 / 5 + 1 / 2)
    assert meters.close(second) == 0.0


def test_a_place_starts_at_zero_again():
    meters = MeterBank("cpu", places=1)
    place = meters.open()
    meters.record(torch.tensor([place]), torch.ones(1, 2), torch.full((1, 2), torch.nan))
    meters.close(place)
    assert meters.in_use == 0
    assert meters.close(meters.open()) == 0.0


def test_grows_and_keeps_what_is_running():
    meters = MeterBank("cpu", places=2)
    places = [meters.open() for _ in range(2)]
    meters.record(torch.tensor(places), torch.ones(2, 1), torch.tensor([[2.0], [4.0]]))
    places += [meters.open() for _ in range(7)]
    assert len(set(places)) == 9
    assert meters.in_use == 9
    assert [meters.close(place) for place in places] == [1.0, 3.0] + [0.0] * 7
    assert meters.in_use == 0


def test_a_zero_activation_gives_a_number():
    meters = MeterBank("cpu")
    place = meters.open()
    meters.record(torch.tensor([place]), torch.zeros(1, 4), torch.zeros(1, 4))
    assert meters.close(place) == 0.0


def test_tells_which_sums_overflowed():
    meters = MeterBank("cpu")
    places = [meters.open() for _ in range(3)]
    before = torch.ones(3, 4)
    after = torch.stack([torch.full((4,), 1e20), torch.full((4,), 2.0), torch.full((4,), torch.nan)])
    meters.record(torch.tensor(places), before, after)
    assert meters.overflowed() == {places[0], places[2]}
