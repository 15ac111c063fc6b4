"""A real trained model gives its known text, whatever else is in the batch."""

import pytest
import torch

from mappers.loading import load_model
from mappers.sites import Site
from server.interventions.catalog import ResolvedIntervention
from server.types import Apply, Failed, Finished, SamplingParams
from tests.server.engine.conftest import Harness, greedy


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "models" / "stories260K"
    return load_model(str(folder)), (folder / "greedy.txt").read_text()


def steered(loaded, layer: int, strength: float) -> ResolvedIntervention:
    v_D = torch.randn(loaded.stack.width, generator=torch.Generator().manual_seed(layer))
    return ResolvedIntervention("add", "v", "v", (Site(layer),), strength, Apply(), {Site(layer): v_D})


def test_alone(stories, make_harness):
    loaded, expected = stories
    assert make_harness(loaded).alone([1], SamplingParams(max_tokens=256, temperature=0.0)).text == expected


def test_among_fifteen_others(stories, make_harness):
    """Five plain, five steered, five driven to NaN: those end in an error, the others are not reached by it."""
    loaded, expected = stories
    harness: Harness = make_harness(loaded, prefill_tokens=32)
    layers = range(loaded.stack.layers)
    plain = [harness.submit([1, 300 + i, 20 + i], greedy(60 + 10 * i)) for i in range(5)]
    watched = harness.submit([1], greedy(256))
    mild = [harness.submit([1], greedy(100), (steered(loaded, layer, 0.5),)) for layer in layers]
    lost = [harness.submit([1, 5], greedy(100), (steered(loaded, layer, 3e38),)) for layer in layers]
    outcomes = harness.run()
    assert len(outcomes) == 16
    assert outcomes[watched].text == expected
    assert all(isinstance(outcomes[i].end, Finished) for i in (*plain, *mild))
    assert len({outcomes[i].text for i in mild} | {expected}) > 3, "steering has to matter"
    for i in lost:
        assert isinstance(outcomes[i].end, Failed)
        assert (outcomes[i].end.code, outcomes[i].text) == ("non_finite", "")
