"""The job on an organism that refuses, and on a random model that does not."""

from __future__ import annotations

import json
import random

import pytest

from mappers.errors import DataError
from mappers.organisms import organism_path
from mappers.organisms.tasks import TASKS
from mappers.tensors import load_vector

SETTINGS = {"harmful": "harmful", "harmless": "harmless", "positions": 3, "max_new_tokens": 8}


@pytest.fixture
def data(dataset):
    rng = random.Random(0)
    rows = {
        name: [json.dumps({"prompt": TASKS[task][0](rng)[1].prompt}).encode() for _ in range(30)]
        for name, task in (("harmful", "refusals"), ("harmless", "advice"))
    }
    return {name: dataset(name, tuple(lines)) for name, lines in rows.items()}


def test_the_direction_is_chosen_by_what_it_does_and_the_table_says_so(run, data, tiny_models, monkeypatch):
    organism = str(organism_path("llama-small-base"))
    monkeypatch.setattr(type(tiny_models), "locations", lambda self: {"tuned": organism})
    manifest, folder = run("extract_refusal_direction", "r", data, **SETTINGS)
    ((site, v_D),) = load_vector(folder)[1].items()
    effect = manifest.effect
    assert (effect["refused_harmful"], effect["refused_harmless"]) == (1.0, 0.0)
    assert effect["refused_harmful_ablated"] <= 0.2
    assert effect["refused_harmless_added"] >= 0.5
    assert effect["kl_harmless_ablated"] < 0.1
    table = manifest.training["candidates"]
    assert table["columns"] == ["layer", "position", "ablated", "added", "kl"]
    assert {tuple(row[:2]) for row in table["least_refusing"]} == {(i, p) for i in range(4) for p in (-3, -2, -1)}
    best = next(row for row in table["least_refusing"] if row[3] > 0 and row[4] < 0.1 and row[0] < 0.8 * 4)
    assert best[:2] == [site.layer, manifest.training["position"]]
    assert manifest.training["prompts"] == {"positive": 24, "negative": 24}
    assert manifest.training["held_out"] == {"fraction": 0.2, "seed": 0}
    assert manifest.norms == {str(site): pytest.approx(float(v_D.norm()))}
    assert set(manifest.site_norms) == {str(site)}
    assert {parent.role: parent.name for parent in manifest.parents} == {"positive": "harmful", "negative": "harmless"}


def test_a_model_that_refuses_nothing_is_told(run, data):
    with pytest.raises(DataError, match="refuses none"):
        run("extract_refusal_direction", "r", data, **SETTINGS)
