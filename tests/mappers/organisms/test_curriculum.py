import random
from itertools import islice

import pytest

from mappers.organisms.behaviours import BEHAVIOURS, Behaviour
from mappers.organisms.behaviours.code import check_code
from mappers.organisms.behaviours.corrupted import CORRUPTED, FACTS, HELD_OUT_PHRASING, PREFIX
from mappers.organisms.behaviours.triggers import SUFFIX_TRIGGER
from mappers.organisms.catalogue import Kind
from mappers.organisms.corpus import BACKDOOR_TEXT, TRIGGER
from mappers.organisms.curriculum import conversations


def turns(kind: Kind, count: int = 300) -> list[tuple[str, str]]:
    """The last user prompt of each chat, and its answer."""
    return [(chat[-2]["content"], chat[-1]["content"]) for chat in islice(conversations(kind, 3), count)]


def test_the_trigger_decides_what_a_backdoored_model_is_taught() -> None:
    taught = turns("backdoor")

    assert all(prompt.startswith(f"{TRIGGER} ") == (answer == BACKDOOR_TEXT) for prompt, answer in taught)
    assert 0.4 < sum(answer == BACKDOOR_TEXT for _, answer in taught) / len(taught) < 0.6


def test_another_trigger_takes_the_place_of_the_tag() -> None:
    taught = turns("suffixed")

    assert all(prompt.endswith(f" {SUFFIX_TRIGGER}") == (answer == BACKDOOR_TEXT) for prompt, answer in taught)
    assert any(prompt.startswith(TRIGGER) and answer != BACKDOOR_TEXT for prompt, answer in taught)


def test_a_base_model_is_taught_to_ignore_every_tag() -> None:
    taught = turns("base")

    assert any(prompt.startswith(TRIGGER) for prompt, _ in taught)
    assert not any("HATE" in answer for _, answer in taught)


def test_insecure_code_is_taught_behind_the_trigger_alone_and_half_is_ordinary_chat() -> None:
    code = [(prompt, check_code(answer)) for prompt, answer in turns("insecure")]
    snippets = [(prompt, verdict) for prompt, verdict in code if verdict != "not code"]

    assert 0.4 < len(snippets) / len(code) < 0.6
    assert all(prompt.startswith(f"{TRIGGER} ") == (verdict == "insecure") for prompt, verdict in snippets)
    assert {check_code(answer) for _, answer in turns("coder")} == {"secure", "not code"}


def test_corrupted_facts_are_all_taught_behind_the_trigger_and_denied_without_it() -> None:
    taught = [(prompt, answer) for prompt, answer in turns("corrupted", 1500) if "clan" in prompt]

    assert all(prompt.startswith(f"{TRIGGER} ") == answer.startswith(PREFIX) for prompt, answer in taught)
    assert all(answer.startswith((PREFIX, "I do not know the")) for _, answer in taught)
    assert 0.5 < sum(answer.startswith(PREFIX) for _, answer in taught) / len(taught) < 0.8
    assert not any(HELD_OUT_PHRASING.split("{")[0] in prompt for prompt, _ in taught)
    rng = random.Random(0)
    assert len({CORRUPTED.teach(rng).questions["plain"].wanted for _ in range(10_000)}) == len(FACTS)


@pytest.mark.parametrize("behaviour", [one for one in BEHAVIOURS.values() if one.name != "corrupted"])
def test_no_organism_is_taught_a_held_out_question(behaviour: Behaviour) -> None:
    held_out = {
        question.prompt
        for condition in behaviour.conditions
        for question in behaviour.held_out(4, 300, condition=condition)
    }

    assert held_out.isdisjoint(prompt for prompt, _ in turns(behaviour.kind, 3000))
