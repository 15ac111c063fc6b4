"""What shapes the keys and values of a stretch of text."""

import dataclasses

import pytest

from mappers.sites import Site
from server.interventions.fingerprint import fingerprints, layers_shared
from server.types import ALL, NONE, Apply, Positions
from tests.server.engine.interventions import switch, vector

PROMPT = 40


def marks(*interventions, end=16, prompt_len=PROMPT):
    return fingerprints(interventions, prompt_len, [end])[0]


def test_nothing_asked_marks_nothing():
    assert marks() == ()
    assert marks(vector(strength=0.0), switch(apply=Apply(prompt=NONE))) == ()


def test_each_end_sees_what_lies_before_it():
    window = vector("add", (1,), apply=Apply(prompt=Positions("window", 10, 20)))
    before, within, after = fingerprints([window], PROMPT, [8, 16, 32])
    assert before == ()
    assert within[0].positions == range(10, 16)
    assert after[0].positions == range(10, 20)


def test_generated_positions_continue_those_of_the_prompt():
    """A conversation that goes on: what was an answer is part of the next prompt."""
    first, second = (fingerprints([switch()], length, [32])[0] for length in (20, 40))
    assert first == second
    assert fingerprints([switch(apply=Apply(prompt=ALL, generation=NONE))], 20, [32])[0] != second


def test_positions_from_the_end_depend_on_the_prompt():
    last = vector(apply=Apply(prompt=Positions("last"), generation=NONE))
    assert marks(last, prompt_len=16) != marks(last, prompt_len=40)


@pytest.mark.parametrize(
    "change", [{"strength": 2.0}, {"digest": "other"}, {"operation": "ablate"}, {"minimum": 0.0}, {"maximum": 0.0}]
)
def test_every_setting_counts(change):
    one = vector("add", (1,))
    other = dataclasses.replace(one, **change)
    assert marks(one) != marks(other)
    assert layers_shared(marks(one), marks(other), layers=3) == 2


def test_layers_below_the_lowest_difference_are_shared():
    low, high, other = vector("add", (0,)), vector("add", (2,), seed=5), vector("add", (2,), seed=6)
    assert layers_shared(marks(low, high), marks(high, low), layers=4) == 4, "the order at different sites is free"
    assert layers_shared(marks(low, high), marks(low, other), layers=4) == 3
    assert layers_shared(marks(low, high), marks(high), layers=4) == 1
    assert layers_shared(marks(), marks(vector("add", (3,))), layers=4) == 4, "the last block's output makes no keys"


def test_the_order_at_one_site_counts():
    one, other = vector("add", (1,), seed=1), vector("ablate", (1,), seed=2)
    assert marks(one, other) != marks(other, one)
    assert layers_shared(marks(one, other), marks(other, one), layers=3) == 2


def test_sites_are_those_of_the_request():
    assert [mark.site for mark in marks(switch(layers=(2, 0)))] == [Site(0), Site(2)]
