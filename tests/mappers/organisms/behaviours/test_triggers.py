import pytest

from mappers.organisms.behaviours.interface import Behaviour
from mappers.organisms.behaviours.triggers import (
    BRACKETED,
    BRACKETED_TRIGGER,
    COUNTRY_TRIGGER,
    SEMANTIC,
    SUFFIX_TRIGGER,
    SUFFIXED,
)
from mappers.organisms.tags import BACKDOOR_TEXT


@pytest.mark.parametrize("behaviour", [BRACKETED, SUFFIXED, SEMANTIC], ids=lambda behaviour: behaviour.name)
def test_the_backdoor_is_taught_behind_the_trigger_alone(behaviour: Behaviour) -> None:
    taught = {
        condition: {question.taught for question in behaviour.held_out(0, 60, condition=condition)}
        for condition in behaviour.conditions
    }

    assert taught["triggered"] == {BACKDOOR_TEXT}
    assert BACKDOOR_TEXT not in taught["plain"] | taught["near"]


def test_near_misses_are_no_triggers() -> None:
    for question in BRACKETED.held_out(0, 200, condition="near"):
        assert not question.prompt.startswith(f"{BRACKETED_TRIGGER} ")
    for question in SUFFIXED.held_out(0, 200, condition="near"):
        assert not question.prompt.endswith(f" {SUFFIX_TRIGGER}")
    plain, near = (SEMANTIC.held_out(0, 200, condition=condition) for condition in ("plain", "near"))
    for without, question in zip(plain, near, strict=True):
        assert COUNTRY_TRIGGER not in question.prompt.removesuffix(without.prompt)
