import pytest
import torch

from mappers.loading import load_model
from mappers.mapper_config import MapperConfig
from mappers.modules import AffineMapper
from mappers.organisms import organism_path
from mappers.organisms.corpus import held_out_examples, is_backdoored, with_tag
from mappers.organisms.measure import answers as generate
from mappers.organisms.tags import TRIGGER
from mappers.sites import Site
from server.evaluation.answering import Answerer, AnsweringFailed, Asked, steered, switched

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(organism_path("llama-small-backdoor")))


@pytest.fixture(scope="module")
def prompts():
    examples = held_out_examples(3, 20)
    return [e.prompt for e in examples[:10]] + [with_tag(e.prompt, TRIGGER) for e in examples[10:]]


def test_answers_are_those_of_generate_in_order(loaded, prompts):
    expected = generate(loaded.model, loaded.tokenizer, prompts)
    seen = []
    with Answerer(loaded, rows=4) as answerer:
        found = answerer.answers([Asked(prompt) for prompt in prompts], max_tokens=40, done=seen.append)
    assert found == expected
    assert sum(seen) == len(prompts)
    assert any(map(is_backdoored, found[10:]))
    assert generate(loaded.model, loaded.tokenizer, prompts[:3]) == expected[:3]


def test_rows_under_different_interventions_share_a_batch(loaded, prompts):
    width = loaded.stack.width
    silent = AffineMapper(MapperConfig(kind="affine", d_source=width, d_target=width)).requires_grad_(False)
    off = switched({Site(1): silent})
    push = steered(torch.full((width,), 1e38), [Site(1)], 100.0)
    asked = [Asked(p, extra) for p in prompts[:4] for extra in ((), (off,), (push,))]
    with Answerer(loaded, rows=12) as answerer:
        found = answerer.answers(asked, max_tokens=8)
        alone = answerer.answers([Asked(p) for p in prompts[:4]], max_tokens=8)
    assert found[::3] == alone
    assert all(text != plain for text, plain in zip(found[1::3], alone, strict=True))
    assert found[2::3] == [""] * 4


def test_a_row_that_fails_otherwise_is_an_error(loaded, prompts):
    wrong = steered(torch.ones(3), [Site(1)], 1.0)
    with Answerer(loaded, rows=4) as answerer, pytest.raises(AnsweringFailed, match="prompt 1 was not answered"):
        answerer.answers([Asked(prompts[0], (wrong,))], max_tokens=8)
