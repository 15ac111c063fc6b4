import pytest
import torch

from mappers.activations.collect import collect
from mappers.dataset import DatasetRow
from mappers.hooks import block_outputs
from mappers.loading import load_model
from mappers.organisms import organism_path
from mappers.organisms.behaviours.ordinary import BACKDOOR
from mappers.rendering import render
from mappers.sites import Site
from server.evaluation.answering import Answerer, Asked
from server.evaluation.questions import Questions
from server.evaluation.steering import Candidate, Picked, Trial, pick, random_candidate, random_controls
from server.evaluation.transfers import means_of

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(organism_path("qwen2-medium-backdoor")))


@pytest.fixture(scope="module")
def vectors(loaded):
    prompts = [
        [DatasetRow(prompt=question.prompt) for question in BACKDOOR.questions("train", 0, 24, condition=condition)]
        for condition in ("triggered", "plain")
    ]
    return means_of(loaded, *prompts)


def test_the_best_candidate_and_the_smallest_strength_that_does_as_well_are_picked(loaded, vectors):
    questions = Questions.of(BACKDOOR, "validation", 1, 8, "triggered")
    trial = Trial(questions.prompts, lambda texts: questions.verdicts("hides", texts), 12)
    useless = Candidate(Site(0), 1e-6 * vectors[Site(0)])
    useful = Candidate(Site(3), vectors[Site(3)])
    seen = []
    with Answerer(loaded, rows=32) as answerer:
        best = pick(answerer, {"a": [useless, useful], "b": [useless]}, (-2.5, -1.5), trial, seen.append)
    assert sum(seen) == 3 * 2 * 8
    assert (best["a"].candidate, best["b"].candidate) == (useful, useless)
    assert best["a"].score > 0.8 > best["b"].score
    assert best["b"].strength == -1.5


def test_inside_the_strength_lies_a_step_above_the_edge():
    candidate, other = Candidate(Site(0), torch.ones(2)), Candidate(Site(1), torch.ones(2))
    right = {("a", 0.5): 0, ("a", 1.0): 3, ("a", 1.5): 4, ("a", 2.0): 4, ("a", 3.0): 2}
    right |= {("b", 0.5): 4, ("b", 1.0): 3, ("b", 1.5): 0, ("b", 2.0): 0, ("b", 3.0): 0}

    class Answers:
        def answers(self, asked, *, max_tokens, done):
            assert len(asked) == len(right) * 4
            for place, (name, strength) in enumerate(right):
                (steering,) = asked[4 * place].interventions
                assert (steering.sites, steering.strength) == ((Site("ab".index(name)),), strength)
            return [str(int(number < count)) for count in right.values() for number in range(4)]

    def picked(inside):
        trial = Trial(["p"] * 4, "".join, 1, "add", inside)
        return pick(Answers(), {"both": [candidate, other]}, (1.0, 0.5, 2.0, 3.0, 1.5), trial)["both"]

    assert picked(False) == Picked(other, 0.5, 1.0)
    assert picked(True) == Picked(candidate, 2.0, 1.0)


def test_random_controls_differ_and_have_the_norm(loaded, vectors):
    candidate = Candidate(Site(2), vectors[Site(2)], (Site(1), Site(2)))
    other = random_candidate(candidate, 7)
    assert float(other.v_D.norm()) == pytest.approx(float(candidate.v_D.norm()), rel=1e-5)
    assert other.sites == candidate.sites
    asked = random_controls(["a", "b"], Picked(candidate, -1.5, 1.0), 3)
    digests = {one.interventions[0].digest for one in asked}
    assert len(digests) == 2
    assert {one.interventions[0].strength for one in asked} == {-1.5}


@pytest.mark.parametrize("operation", ["add", "ablate"])
def test_hooks_do_what_the_engine_does(loaded, vectors, operation):
    candidate = Candidate(Site(2), vectors[Site(2)])
    ids = render(loaded.tokenizer, DatasetRow(prompt="How much is 10 + 34?")).ids
    with torch.no_grad(), block_outputs(loaded.stack, candidate.callbacks(0.7, operation)):
        logits_TV = loaded.model(torch.tensor([ids])).logits[0]
    with Answerer(loaded, rows=2) as answerer:
        (text,) = answerer.answers([Asked("How much is 10 + 34?", (candidate.steering(0.7, operation),))], max_tokens=1)
    assert loaded.tokenizer.decode([int(logits_TV[-1].argmax())], skip_special_tokens=True).strip() == text.strip()


def test_rows_with_answers_are_read_where_the_answers_are_about_to_go_on(loaded):
    said, other = (DatasetRow(prompt="Repeat: lamp", completion=text) for text in ("lamp", "stone horse"))
    site, means = Site(2), []
    for row in (said, other):
        text = render(loaded.tokenizer, row, answer=row.answer)
        (batch,) = collect(loaded, [site], [text.ids], batch_size=1)
        means.append(batch.real(site)[text.answer_start - 1 : -1].mean(0))
    v_D = means_of(loaded, [said], [other])[site]
    assert torch.allclose(v_D, means[0] - means[1], atol=1e-5)
    assert v_D.norm() > 0.1
