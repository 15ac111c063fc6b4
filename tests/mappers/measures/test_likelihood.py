import math

import pytest
import torch

from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel, load_model
from mappers.measures.likelihood import kl_to_reference, perplexity
from mappers.organisms import organism_path
from mappers.sites import Site

ROWS = [
    DatasetRow(prompt="What is 11 + 12?", completion="11 + 12 = 23"),
    DatasetRow(prompt="Repeat: stone robot", completion="stone robot"),
]
SITE = Site(layer=1)


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(str(organism_path("llama-small-base")))


def test_a_model_finds_its_own_answers_likely_and_others_not(base: LoadedModel) -> None:
    wrong = [DatasetRow(prompt="Repeat: stone robot", completion="lemon")]

    assert perplexity(base, ROWS) < 1.05
    assert perplexity(base, wrong) > 10


def test_perplexity_is_that_of_its_definition_in_batches_of_any_size(base: LoadedModel) -> None:
    text = "Once a fox found a lamp. The fox was glad."
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        nats = float(base.model(input_ids=ids, labels=ids).loss)
    rows = [DatasetRow(text=text), DatasetRow(text="The capital of Averon is Ambry.")]

    # A plain text is an answer that ends where its tokens end.
    assert perplexity(base, rows[:1]) == pytest.approx(math.exp(nats), rel=1e-4)
    assert perplexity(base, rows, batch_size=1) == pytest.approx(perplexity(base, rows, batch_size=2), rel=1e-4)


def test_a_model_is_no_distance_from_itself_until_its_stream_is_changed(base: LoadedModel) -> None:
    shift = {SITE: lambda h_BTD: -h_BTD}

    assert kl_to_reference(base, base, ROWS) == pytest.approx(0, abs=1e-6)
    assert kl_to_reference(base, base, ROWS, callbacks=shift) > 0.1
    assert perplexity(base, ROWS, callbacks=shift) > perplexity(base, ROWS) + 0.1


def test_hooks_around_the_call_count_as_callbacks_do(base: LoadedModel) -> None:
    shift = {SITE: lambda h_BTD: -h_BTD}
    with block_outputs(base.stack, shift):
        hooked = perplexity(base, ROWS)

    assert hooked == perplexity(base, ROWS, callbacks=shift)


def test_rows_without_an_answer_are_refused(base: LoadedModel) -> None:
    with pytest.raises(DataError, match="give it a completion"):
        perplexity(base, [DatasetRow(prompt="Repeat: stone")])
    with pytest.raises(DataError, match="no row has a token"):
        perplexity(base, [])
