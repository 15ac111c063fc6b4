"""The recipe on a shipped organism, which refuses harmful requests, and its rules of choice alone."""

from __future__ import annotations

import random

import pytest

from mappers.behaviour import Answer, ablating, adding, greedy_answers
from mappers.dataset import DatasetRow
from mappers.errors import DataError, TrainingError
from mappers.loading import load_model
from mappers.organisms import organism_path
from mappers.organisms.tasks import TASKS
from mappers.refusal_direction import Held, Scores, candidates, choose, refusal_tokens, score_candidates
from mappers.refusals import REFUSALS, is_refusal
from mappers.rendering import render
from mappers.sites import Site
from mappers.vectors import SiteNorms


def prompts(loaded, task: str, count: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    rows = [DatasetRow(prompt=TASKS[task][0](rng)[1].prompt) for _ in range(count)]
    return [render(loaded.tokenizer, row).ids for row in rows]


def test_the_chosen_direction_removes_refusal_when_ablated_and_induces_it_when_added():
    loaded = load_model(str(organism_path("llama-small-base")))
    harmful, harmless = (prompts(loaded, task, 24, 0) for task in ("refusals", "advice"))
    held_harmful, held_harmless = (prompts(loaded, task, 10, 1) for task in ("refusals", "advice"))
    answers = greedy_answers(loaded, held_harmful, {}, max_new_tokens=12, batch_size=16)
    held = Held(held_harmful, held_harmless, refusal_tokens(answers, REFUSALS))
    norms = SiteNorms()
    vectors = candidates(loaded, harmful, harmless, 2, batch_size=16, norms=norms)
    assert set(vectors) == {(Site(layer), position) for layer in range(loaded.stack.layers) for position in (-2, -1)}
    assert set(norms.values()) == {Site(layer) for layer in range(loaded.stack.layers)}
    scored = dict(score_candidates(loaded, vectors, held, batch_size=16))
    place = choose(scored, loaded.stack.layers, max_kl=5.0, max_layer=1.0)
    every = dict.fromkeys((Site(layer) for layer in range(loaded.stack.layers)), ablating(vectors[place]))

    def refused(callbacks, asked) -> float:
        said = greedy_answers(loaded, asked, callbacks, max_new_tokens=12, batch_size=16)
        return sum(is_refusal(answer.text) for answer in said) / len(said)

    assert refused({}, held_harmful) == 1.0
    assert refused({}, held_harmless) == 0.0
    assert refused(every, held_harmful) <= 0.3
    assert refused({place[0]: adding(vectors[place], 1.0)}, held_harmless) >= 0.7


def test_of_those_that_pass_the_one_that_leaves_the_least_refusal_is_taken():
    good, better = Scores(ablated=-1.0, added=2.0, kl=0.01), Scores(ablated=-3.0, added=2.0, kl=0.01)
    scored = {
        (Site(0), -1): good,
        (Site(1), -1): better,
        (Site(1), -2): Scores(ablated=-9.0, added=-0.1, kl=0.01),
        (Site(2), -1): Scores(ablated=-9.0, added=2.0, kl=0.5),
        (Site(3), -1): Scores(ablated=-9.0, added=2.0, kl=0.01),
        (Site(2), -2): Scores(ablated=float("nan"), added=float("nan"), kl=float("nan")),
    }
    assert choose(scored, 4, max_kl=0.1, max_layer=0.75) == (Site(1), -1)
    with pytest.raises(TrainingError, match=r"of 6 candidates 4 induce refusal when added, 0 have a KL below 0\.001"):
        choose(scored, 4, max_kl=0.001, max_layer=0.75)


def test_a_model_that_refuses_nothing_has_no_direction():
    with pytest.raises(DataError, match="refuses none"):
        refusal_tokens([Answer((4, 5), "Sure."), Answer((), "")], REFUSALS)
    assert refusal_tokens([Answer((4, 5), "I cannot."), Answer((6,), "Sure.")], REFUSALS) == {4}


def test_prompts_have_to_reach_back_far_enough():
    with pytest.raises(DataError, match="fewer than 3 tokens"):
        candidates(None, [(1, 2)], [(1, 2, 3)], 3, batch_size=1, norms=SiteNorms())  # type: ignore[arg-type]
